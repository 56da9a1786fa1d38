"""calibrate: thresholds within a budget, from clips of every kind."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from oracle import assert_close, edges
from torch import Tensor, nn

import deltaconvert
from deltaconvert import progress
from deltaconvert.calibration.held_out import held_to
from deltaconvert.calibration.moves import crossed, in_runs
from deltaconvert.calibration.quickest import quickest
from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.errors import DeltaConvertError, InputError
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2
from deltaconvert.progress import trials_told

calibration = importlib.import_module("deltaconvert.calibrate")  # the package's name of that is the function


def network() -> nn.Module:
    torch.manual_seed(7)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    ]
    return nn.Sequential(*layers).eval()


def clip(frames: int = 6, seed: int = 0) -> list[Tensor]:
    """A box with fresh texture that moves over a still scene, under noise."""
    draw = torch.Generator().manual_seed(seed)
    scene = torch.rand(1, 3, 32, 48, generator=draw)
    out = []
    for t in range(frames):
        frame = scene + torch.randn(scene.shape, generator=draw) * 0.01
        frame[:, :, 8:18, 4 + 3 * t : 14 + 3 * t] = torch.rand(1, 3, 10, 10, generator=draw)
        out.append(frame)
    return out


@pytest.fixture(scope="module")
def delta():
    return deltaconvert.convert(network(), clip()[0])


@pytest.mark.parametrize("method", ["allocate", "front_to_back"])
def test_the_budget_is_kept_and_work_is_saved(delta, method):
    """What is promised on the clip is what the model does on it."""
    frames = clip()
    found = deltaconvert.calibrate(
        delta, frames, budget=0.05, method=method, gates=[Gate(), Gate(smooth=3)], rounds=1, progress=False
    )
    assert 0 < found.loss <= 0.05 and found.work < 0.9
    assert max(delta.thresholds.values()) == 0  # it stays as it was
    ours, dense, work = [], [], []
    model = deltaconvert.convert(network(), frames[0], threshold=found.thresholds, backend="reference")
    for frame in frames:
        ours.append(model(frame))
        dense.append(network()(frame).detach())
        work.append(model.stats().work)
    assert relative_l2(ours, dense) == pytest.approx(found.loss, rel=1e-3)
    assert sum(work[1:]) / 5 == pytest.approx(found.work, rel=1e-3)
    assert found.model.thresholds.keys() == model.thresholds.keys()
    assert found.model.gate == model.gate
    assert "of 0.05" in str(found)


def test_sums_of_residuals_have_the_thresholds_that_were_tried(backend, tmp_path):
    """No rule for a kind means them, and no pattern; their paths do, in the model and in its file."""

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    device = torch.get_default_device()
    with torch.device("cpu"):
        torch.manual_seed(3)
        inner = nn.Conv2d(8, 8, 3, padding=1)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(inner), nn.Conv2d(8, 4, 3)]
        frames = [frame.to(device) for frame in clip()]
    net = nn.Sequential(*layers).eval().to(device)
    trials = Trials(deltaconvert.convert(net, frames[0]), [[x] for x in frames], relative_l2)
    assert [site.names[-1] for site in trials.sites] == ["input_0", "1", "2.add"]
    tried, exact = (trials(Setting((0.05, 0.0, share))) for share in (0.3, 0.0))
    assert tried.work < exact.work and tried.loss > exact.loss

    thresholds = trials.thresholds(Setting((0.05, 0.0, 0.3)))
    model = deltaconvert.convert(net, frames[0], threshold=thresholds, backend=backend)
    model.save(tmp_path / "net.delta")
    for delta in (model, deltaconvert.load(tmp_path / "net.delta", backend=backend, device=device)):
        work = []
        for frame in frames:
            delta(frame)
            work.append(delta.stats().work)
        assert sum(work[1:]) / 5 == pytest.approx(tried.work, rel=1e-3)
    for rules in ({"input": 0.1, "activation": 0.3}, {"2.*": 0.3}, {"*": 0.3}):
        assert deltaconvert.convert(net, frames[0], threshold=rules).thresholds.get("2.0", 0.0) == 0.0


def test_allocation_beats_one_scale_for_all(delta):
    """One layer's changes hardly reach the output: it gets a high threshold, and the work sinks at the same loss."""
    net = network()
    net[4].weight.data[:, 4:] *= 1e-3  # of the second activation, half of the channels hardly count
    frames = clip()
    trials = Trials(deltaconvert.convert(net, frames[0]), [[x] for x in frames], relative_l2)
    search = Search(trials, 0.05)
    (plain,) = search.scaled([Setting((0.05,) + (0.1,) * (len(trials.sites) - 1))], tries=8)
    best = search.allocate([Gate()], rounds=2)
    assert search.look(best).loss <= 0.05
    assert search.look(best).work < search.look(plain).work


@pytest.mark.parametrize("streams", [1, 3])
def test_layers_alike_do_alike_at_the_end(streams):
    """A layer that is read by ten times the weights has a tenth of the threshold. The gradient agrees with the error
    that a small change makes."""
    net = network()
    net[2].weight.data *= 10  # reads the first activation
    frames = [[x] for x in clip()]
    trials = Trials(deltaconvert.convert(net, frames[0][0]), frames, relative_l2, streams=streams)
    shares = trials.alike()
    assert sorted(shares)[1] == 1
    some, trials.sites = trials.sites, trials.sites[1:]
    ratios = [alone / together for alone, together in zip(trials.alike(), shares[1:], strict=True)]
    same = pytest.approx(ratios[:1] * 2, rel=0.01)  # shares have three digits
    assert ratios == same, "whoever takes sites out gets the shares of the others"
    trials.sites, errors = some, []
    draw = torch.Generator().manual_seed(1)
    for place, first in ((1, 2), (2, 4)):  # the activations, and what follows each
        x = net[:first](frames[0][0]).detach()
        change = torch.randn(x.shape, generator=draw) * shares[place] * trials.sites[place].scale * 1e-3
        errors.append(float((net[first:](x + change) - net[first:](x)).detach().square().sum() / x.numel()))
    assert errors[0] == pytest.approx(errors[1], rel=0.3)


def test_layers_alike_without_a_gradient(delta):
    """Labels have none: the outputs' is taken. Where they have none every threshold is the same share of its map."""

    class Labels(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    frames = [[x] for x in clip()]
    labels = Trials(delta, frames, relative_l2, decode=lambda out: out.argmax(1))
    assert labels.alike() == Trials(delta, frames, relative_l2).alike() != (1.0,) * 3
    without = deltaconvert.convert(Labels(*network()).eval(), frames[0][0])
    # The convolution before the labels is linear.
    assert Trials(without, frames, relative_l2).alike() == (1.0,) * 4


def test_a_search_that_was_cut_off_spends_its_budget(delta):
    search = Search(Trials(delta, [[x] for x in clip()], relative_l2), 0.012)
    small = Setting((0.04,) * 3)
    before = search.look(small)
    found = search.look(search.spent())
    assert before.loss < 0.008 < found.loss <= 0.012 and found.work < 0.9 * before.work


def test_it_tells_how_far_it_is(capsys, monkeypatch):
    """A line now and then where no terminal is: the last trial, what one takes, and the best within the budget."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with trials_told(True, budget=0.1) as tell:
        for loss, work in ((0.2, 0.3), (0.05, 0.6), (0.1, 0.5), (0.01, 0.9)):
            tell(Setting(()), Outcome(loss, loss, work))
    first, *_, last = capsys.readouterr().err.splitlines()
    each = re.compile(r", [\d.e-]+ s each")
    assert each.search(first) and each.search(last)
    assert each.sub("", first) == "calibrating: trial 1: loss 0.2, work 30.0%; none within the budget yet"
    assert each.sub("", last) == "calibrating: trial 4: loss 0.01, work 90.0%; least so far 50.0%"


@pytest.mark.parametrize("method", ["allocate", "front_to_back"])
def test_it_takes_as_long_as_it_may(delta, method):
    """Where the time is over it has the best so far, or the exact network."""
    frames = clip()
    none = deltaconvert.calibrate(delta, frames, budget=0.05, method=method, seconds=1e-9, progress=False)
    assert none.trials == 0 and max(none.model.thresholds.values()) == 0 and none.loss < 1e-6
    with pytest.raises(InputError, match="seconds"):
        deltaconvert.calibrate(delta, frames, seconds=0)
    works = []
    for most in (2, 8, 30):
        trials = Trials(delta, [[x] for x in frames], relative_l2)
        search = Search(trials, 0.05, until=1e12)

        def many(settings, ask=trials.many, search=search, most=most):
            if len(search.tried) + len(settings) >= most:
                search.until = 0.0
            return ask(settings)

        trials.many = many
        try:
            found = search.allocate([Gate()], 1) if method == "allocate" else search.front_to_back()
        except TimeoutError:
            found = search.best()
        assert len(search.tried) <= most + 2
        assert found == search.exact() or search.tried[found].loss <= 0.05
        works.append(1.0 if found == search.exact() else search.tried[found].work)
    assert works[0] >= works[1] >= works[2] < 0.9


def test_what_was_found_early_is_raised_to_the_budget(delta, monkeypatch):
    """The first trials are far below it: a part of the time is left to double their thresholds."""
    search = Search(Made(lambda setting: (max(setting.shares) ** 2, 1 - max(setting.shares)), 2), budget=0.01)
    search.look(Setting((0.004,) * 3))
    assert 0.09 < max(search.spent(start=2.0).shares) <= 0.1

    asked = []

    class Watched(Search):
        def spent(self, tries=8, start=1.2):
            asked.append(start)
            return super().spent(tries, start)

    monkeypatch.setattr(calibration, "Search", Watched)
    options = {"budget": 0.05, "gates": [Gate()], "rounds": 0, "progress": False}
    deltaconvert.calibrate(delta, clip(), seconds=1e-9, **options)
    assert asked == [1.2, 2.0]
    deltaconvert.calibrate(delta, clip(3), **options)
    assert asked[2:] == [1.2]


def test_what_was_found_is_held_to_other_frames(delta, tmp_path):
    """At night the same thresholds lose more."""
    day, night = clip(), [frame * 0.2 for frame in clip(6, seed=3)]
    options = {"budget": 0.02, "gates": [Gate()], "rounds": 0, "progress": False}
    options["resume"] = tmp_path / "trials.jsonl"
    alone = deltaconvert.calibrate(delta, day, **options)
    held = deltaconvert.calibrate(delta, day, **options, check=night)
    lost = []
    for found in (alone, held):
        pairs = [(found.model(frame), network()(frame).detach()) for frame in night]
        lost.append(relative_l2(*map(list, zip(*pairs, strict=True))))
    assert alone.checked is None and lost[0] > 0.02
    assert 0 < held.checked <= 0.02 and lost[1] == pytest.approx(held.checked, rel=1e-3)
    ratios = [ours / theirs for ours, theirs in zip(held.setting.shares, alone.setting.shares, strict=True)]
    assert ratios == pytest.approx(ratios[:1] * 3) and ratios[0] < 1
    assert "to check with" in str(held)


def test_what_holds_on_other_frames_stays_and_what_never_holds_goes(delta):
    frames = [[x] for x in clip()]
    setting = Setting((0.02, 0.05, 0.05))
    known = Trials(delta, frames, relative_l2)
    loss = known(setting).loss
    for budget in (loss * 1.1, loss * 0.5):
        found, lost = held_to(setting, known, Trials(delta, frames[2:], relative_l2), budget)
        assert 0 < lost <= budget and (found == setting) == (budget > loss)
    hopeless = Trials(delta, frames[2:], lambda ours, dense: 1.0)
    assert held_to(setting, known, hopeless, 0.5) == (Setting((0.0,) * 3), 1.0)


class Made:
    """Trials of a network that is not there: outcomes by a rule."""

    at_once = 8
    narrowing: frozenset[int] = frozenset()

    def __init__(self, rule, layers):
        self.rule = rule
        self.sites = [SimpleNamespace(kind="input"), *[SimpleNamespace(kind="activation")] * layers]

    def many(self, settings):
        return [Outcome(loss, loss, work) for loss, work in map(self.rule, settings)]


def test_layers_that_save_only_together_are_raised_together():
    """What passes any of the two middle layers makes all behind them work: none alone saves anything."""

    def rule(setting):
        _, *shares = setting.shares
        stopped = min(shares[2:4]) >= 0.4
        return sum(share**2 for share in shares) / 100, 0.2 if stopped else 1.0

    search = Search(Made(rule, 8), budget=0.01)
    setting = Setting((0.1,) * 9)
    alone = [setting.at(place, 1.6) for place in range(9)]
    assert {outcome.work for outcome in search.look_at(alone)} == {1.0}
    assert min(outcome.work for outcome in search.look_at(in_runs(setting, search.layers, 4.0))) == 0.2
    leading = [setting]
    search.settled(leading, [Gate()], rounds=1)
    assert search.look(leading[0]).work == 0.2 and search.fits(leading[0])


def test_changes_are_narrow_where_that_pays():
    """Layer by layer: of four, two lose nothing by it, one loses more than the budget, and one saves nothing."""
    saves, loses = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.0}, {1: 0.0, 2: 0.001, 3: 0.5, 4: 0.05}

    def rule(setting):
        work = sum(1.0 / share for share in setting.shares) / 100
        lost = sum(share**2 for share in setting.shares) / 1e4 + sum(loses[n] for n in setting.narrow)
        return lost, work - sum(saves[n] for n in setting.narrow) + 1.0

    trials = Made(rule, 4)
    trials.narrowing = frozenset(saves)
    leading, search = [Setting((1.0,) * 5)], Search(trials, budget=0.01)
    search.settled(leading, [Gate()], rounds=3)
    assert leading[0].narrow == {1, 2} and search.fits(leading[0])


def test_two_settings_are_crossed():
    outer, inner = Setting((2.0,) * 21, gate=Gate(dilate=4)), Setting((1.0,) * 21, gate=Gate(dilate=3))
    found = crossed(outer, inner, range(1, 21))
    assert {setting.gate for setting in found} == {outer.gate}
    assert all(setting.shares[0] == 2.0 for setting in found), "the input's is the gate's"
    between = [sum(share == 1.0 for share in setting.shares) for setting in found]
    assert max(between) == 20 and min(between) < 10 and len(set(found)) == len(found)
    for setting in found:  # one run of the inner one's
        text = "".join("i" if share == 1.0 else "o" for share in setting.shares)
        assert len(text.strip("o").replace("i", "")) == 0


def test_what_is_far_beyond_the_budget_promises_nothing():
    """A network that stands still does no work, at a loss that no scale brings back."""
    outcomes = {0.1: (0.5, 0.0), 0.2: (0.02, 0.3), 0.3: (0.01, 0.4), 0.4: (0.03, 0.9)}
    search = Search(Made(lambda setting: outcomes[setting.shares[1]], 1), budget=0.01)
    settings = [Setting((0.0, share)) for share in outcomes]
    assert [setting.shares[1] for setting in search._promising(settings)] == [0.2, 0.3, 0.4, 0.1]


def test_it_is_never_worse_than_the_papers(delta):
    frames = [[x] for x in clip()]
    for budget in (0.01, 0.05):
        search = Search(Trials(delta, frames, relative_l2), budget)
        paper = search.look(search.front_to_back())
        assert search.look(search.allocate([Gate()], rounds=0)).work <= paper.work


def test_convolutions_without_an_activation_stop_what_grew():
    """A depthwise convolution before a product has a threshold of its own; the paper's way leaves it out."""
    torch.manual_seed(3)
    deep = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        deep,
        nn.Conv2d(8, 32, 1),
        nn.ReLU(),
        nn.Conv2d(32, 2, 1),
    ]
    frames = [[x] for x in clip()]
    trials = Trials(deltaconvert.convert(nn.Sequential(*layers).eval(), frames[0][0]), frames, relative_l2)
    search = Search(trials, 0.05)
    assert [site.kind for site in trials.sites] == ["input", "activation", "linear", "activation"]
    paper = search.front_to_back()
    assert paper.shares[2] == 0 < min(paper.shares[1], paper.shares[3])
    found = search.allocate([Gate(), Gate(smooth=3)], rounds=1)
    wide = min(
        (setting for setting, outcome in search.tried.items() if outcome.loss <= 0.05 and not setting.narrow),
        key=lambda setting: search.look(setting).work,
    )
    assert wide.shares[2] > 0
    assert search.look(wide).work < min(search.look(wide.at(2, 0.0)).work, search.look(paper).work)
    # Narrow changes do not grow: then that threshold may be too much.
    assert found.narrow and search.look(found).work < search.look(wide).work


def test_thresholds_that_cost_more_time_than_they_save_are_left_out(delta):
    """A clock that charges a tenth of a frame for each threshold, and one that charges nothing."""
    search = Search(Trials(delta, [[x] for x in clip()], relative_l2), 0.05)
    found = search.allocate([Gate(), Gate(smooth=3)], rounds=0)
    for price in (0.1, 0.0):
        setting, time = quickest(
            search, lambda s, price=price: search.look(s).work + price * sum(share > 0 for share in s.shares)
        )
        assert search.fits(setting) and setting.shares[0] > 0
        kept = sum(share > 0 for share in setting.shares)
        assert time == pytest.approx(search.look(setting).work + price * kept)
        assert time <= search.look(found).work + price * sum(share > 0 for share in found.shares)


@pytest.mark.parametrize(("price", "kept"), [(0.0, 4), (0.2, 2), (1.0, 0)])
def test_each_threshold_stays_that_saves_more_than_it_costs(price, kept):
    """Two layers save 0.3 of a frame each, two 0.1. What those that go had lost raises the others."""

    def rule(setting):
        pairs = zip((0.3, 0.1, 0.3, 0.1), setting.shares[1:], strict=True)
        saved = sum(part * min(share + 0.5, 1.0) for part, share in pairs if share)
        return max(setting.shares) ** 2 / 100, 1.0 - saved

    search = Search(Made(rule, 4), budget=0.01)
    search.look(Setting((0.1,) * 5))
    setting, time = quickest(
        search, lambda s: search.look(s).work + price * sum(share > 0 for share in s.shares[1:])
    )
    placed = {4: [1, 2, 3, 4], 2: [1, 3], 0: []}[kept]
    assert [place for place, share in enumerate(setting.shares) if place and share] == placed
    assert time == pytest.approx(search.look(setting).work + price * kept)
    assert search.fits(setting) and max(setting.shares) > 0.15


def test_frames_alone_are_quicker_where_thresholds_cost(delta):
    """Behind the input nothing is compared; changes go on as narrow as they came, within the budget."""
    search = Search(Trials(delta, [[x] for x in clip()], relative_l2), 0.05)
    gates = [Gate(), Gate(smooth=3, dilate=2)]
    alone = search.frames_alone(gates)
    assert {setting.gate for setting in alone} == set(gates)
    for setting in alone:
        assert setting.shares[0] > 0 == max(setting.shares[1:]) and setting.narrow == search.trials.narrowing
    assert any(search.fits(setting) and search.look(setting).work < 0.9 for setting in alone)
    setting, _ = quickest(search, lambda s: sum(share > 0 for share in s.shares), gates)
    assert setting in alone and search.fits(setting)


def test_the_quickest_of_what_was_timed_where_the_time_is_over(delta):
    search = Search(Trials(delta, [[x] for x in clip()], relative_l2), 0.05)
    found = search.allocate([Gate()], rounds=0)
    search.until, known = 0.0, len(search.tried)
    setting, time = quickest(search, lambda s: search.look(s).work, [Gate(smooth=5)])
    assert len(search.tried) == known and time == search.look(setting).work <= search.look(found).work


def test_the_clock_decides(delta):
    found = deltaconvert.calibrate(delta, clip(), budget=0.05, by="time", gates=[Gate()], rounds=0)
    assert found.loss <= 0.05 and found.milliseconds > 0 and found.dense_milliseconds > 0


def test_frames_alone_are_timed_where_no_time_is_left_for_layers(delta, monkeypatch):
    now = [0.0]

    def cut_off(search: Search, *_: object) -> Setting:
        now[0] = 1e9
        raise TimeoutError

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Search, "allocate", cut_off)
    options = {"budget": 0.05, "by": "time", "gates": [Gate()], "progress": False}
    found = deltaconvert.calibrate(delta, clip(), seconds=100, **options)
    assert found.setting.shares[0] > 0 and not any(found.setting.shares[1:])
    assert 0 < found.loss <= 0.05 and found.milliseconds > 0


def test_frames_are_batches_of_images():
    """Whatever a gate keeps between frames, it keeps of each image: a trial loses what the model does."""
    net, frames = network(), [torch.cat(pair) for pair in zip(clip(), clip(seed=1), strict=True)]
    trials = Trials(deltaconvert.convert(net, frames[0]), [[x] for x in frames], relative_l2)
    setting = Setting((0.1, 0.0, 0.0), gate=Gate(smooth=3, recent=3, noise=1.0, peak=64.0))
    delta = deltaconvert.convert(net, frames[0], threshold=trials.thresholds(setting), backend="reference")
    lost = relative_l2([delta(frame) for frame in frames], [net(frame) for frame in frames])
    assert trials(setting).loss == pytest.approx(lost, rel=1e-4) and lost > 0


def test_the_dense_network_beside_it_is_the_users(delta):
    """It is called as the converted one is, without gradients, once for each frame of the clip."""
    net, seen = network(), list[Tensor]()

    def theirs(frame: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        time.sleep(0.05)
        seen.append(frame)
        return net(frame)

    options = {"budget": 0.05, "by": "time", "gates": [Gate()], "rounds": 0, "progress": False}
    found = deltaconvert.calibrate(delta, clip(), against=theirs, **options)
    assert found.dense_milliseconds >= 50 and all(map(torch.equal, seen, clip())) and len(seen) == len(clip())


def test_a_clip_on_which_converting_does_not_pay(delta):
    found = deltaconvert.calibrate(delta, clip(), budget=0.05, gates=[Gate()], rounds=0)
    assert "ms" not in str(found)
    for ours, dense in ((2.0, 3.0), (3.0, 2.0)):
        timed = replace(found, milliseconds=ours, dense_milliseconds=dense)
        assert f"{ours:.3g} ms a frame, {dense:.3g} ms dense" in str(timed)
        assert ("does not pay" in str(timed)) == (ours > dense)


@pytest.mark.parametrize(
    "ways", [{"streams": 3}, {"streams": 8}, {"workers": 2}, {"workers": 2, "streams": 2}]
)
def test_trials_side_by_side_are_those_one_by_one(delta, ways):
    """Several thresholds as streams of one batch, or in several processes: the same losses and the same work."""
    frames, sites = [[x] for x in clip()], 3
    settings = [
        Setting((0.1 * k,) * sites, weighted=k == 2, gate=Gate(smooth=3, noise=2.0) if k % 2 else Gate())
        for k in range(5)
    ]
    # In a row: they are looked at together, but for the one that compares exactly.
    row = Gate(smooth=3, recent=2, noise=2.0, dilate=1, weak=0.5)
    settings += [Setting((share,) * sites, gate=row) for share in (0.0, 0.02, 0.2)]
    alone = Trials(delta, frames, relative_l2).many(settings)
    together = Trials(delta, frames, relative_l2, **ways).many(settings)
    for ours, theirs in zip(together, alone, strict=True):
        assert vars(ours) == pytest.approx(vars(theirs), rel=1e-4, abs=1e-6)
    assert alone[0].loss < 1e-6 < alone[1].loss


@pytest.mark.gpu
def test_replayed_trials_are_those_one_by_one(gpu):
    """Frames recorded as CUDA graphs, one for each placing of thresholds."""
    with torch.device("cpu"):
        net, frames = network(), clip()
    net, frames = net.to(gpu), [[x.to(gpu)] for x in frames]
    ours, theirs = (
        Trials(deltaconvert.convert(net, frames[0][0]), frames, relative_l2, streams=2, replay=replay)
        for replay in (True, False)
    )
    row = Gate(smooth=3, recent=2, noise=2.0, dilate=1, weak=0.5)
    settings = [
        Setting((0.1 * k,) * 3, weighted=k == 2, gate=(Gate(), Gate(dilate=2), row)[k % 3]) for k in range(5)
    ]
    for one, other in zip(ours.many(settings), theirs.many(settings), strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-4, abs=1e-6)
    assert ours.replay is not None and not ours.replay.why_not and theirs.replay is None


def test_the_work_of_a_batch_is_that_of_all_its_images(delta):
    frames = clip(3)
    still = [[torch.cat((frames[0], frame))] for frame in frames]
    moving = [[torch.cat((frame, frame))] for frame in frames]
    half, whole = (
        Trials(deltaconvert.convert(network(), calls[0][0]), calls, relative_l2) for calls in (still, moving)
    )
    everywhere = Setting((0.0,) * len(half.sites))
    assert half(everywhere).work == pytest.approx(whole(everywhere).work / 2, rel=1e-6) != 0


def test_a_worker_that_fails_is_told(delta):
    def broken(ours, dense):
        raise ValueError("no such metric")

    with pytest.raises(DeltaConvertError, match="a worker ended"):
        Trials(delta, [[x] for x in clip()], broken, workers=2).many([Setting((s,) * 3) for s in (0.1, 0.2)])


def test_a_users_metric_and_decode(delta):
    def wrong_pixels(ours, dense):
        assert all(label.dtype == torch.int64 for label in ours + dense)
        return sum(float((a != b).float().mean()) for a, b in zip(ours, dense, strict=True)) / len(dense)

    found = deltaconvert.calibrate(
        delta,
        clip(),
        budget=0.02,
        metric=wrong_pixels,
        decode=lambda out: out.argmax(1),
        gates=[Gate()],
        rounds=0,
    )
    assert found.metric == "wrong_pixels" and found.loss <= 0.02 and found.work < 1


def test_it_goes_on_where_it_was(delta, tmp_path, monkeypatch):
    kept, options = tmp_path / "trials.jsonl", {"budget": 0.05, "gates": [Gate()], "rounds": 1}
    first = deltaconvert.calibrate(delta, clip(), resume=kept, **options)
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    tried = []
    real = Trials._try
    monkeypatch.setattr(Trials, "_try", lambda self, setting: tried.append(setting) or real(self, setting))
    again = deltaconvert.calibrate(delta, clip(), resume=kept, **options)
    assert again.thresholds == first.thresholds
    assert 0 < len(tried) == len(lines) - len(lines) // 2
    deltaconvert.calibrate(delta, clip(seed=1), resume=kept, **options)  # another clip has its own trials
    assert len(tried) > len(lines)


def test_the_file_is_what_convert_takes(delta, tmp_path):
    file = tmp_path / "found.json"
    found = deltaconvert.calibrate(delta, clip(), budget=0.05, gates=[Gate(smooth=3)], rounds=0)
    found.write(file)
    assert json.loads(file.read_text())["found"]["budget"] == 0.05
    model = deltaconvert.convert(network(), clip()[0], threshold=file)
    assert model.thresholds == found.model.thresholds and model.gate == found.setting.gate != Gate()
    for frame in clip():
        assert_close(model(frame), found.model(frame))
    assert any(isinstance(e.threshold, float | Tensor) for e in edges(model).values())


@pytest.mark.gpu
def test_what_was_found_travels_to_cuda_and_back(gpu, tmp_path):
    with torch.device("cpu"):
        frames = clip()
        model = deltaconvert.convert(network(), frames[0])
        found = deltaconvert.calibrate(model, frames, budget=0.05, rounds=1, progress=False)
        ours = deltaconvert.convert(network(), frames[0], threshold=found.thresholds)
        ours.save(tmp_path / "here.delta")
    on_gpu = deltaconvert.load(tmp_path / "here.delta", device="cuda")
    assert on_gpu.backend == "cuda" and on_gpu.thresholds == ours.thresholds
    assert max(ours.thresholds.values()) > 0
    on_gpu.save(tmp_path / "there.delta")
    with torch.device("cpu"):
        back = deltaconvert.load(tmp_path / "there.delta")
        assert back.thresholds == ours.thresholds and back.rules == ours.rules
        for t, frame in enumerate(frames):
            expected = ours(frame)
            assert torch.equal(back(frame), expected), f"frame {t}"
            assert_close(on_gpu(frame.to(gpu)).cpu(), expected, f"frame {t} on the GPU")


def test_frames_from_files(delta, tmp_path, monkeypatch):
    """uint8 images, a folder of them and a video come to the same inputs, by the recipe in the model's file."""
    pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    from deltaconvert import feed
    from deltaconvert.watching.inputs import inputs_of

    delta.info["recipe"] = feed.to_json(feed.recipe_for("plain", (1, 3, 32, 48)))
    pictures = [(frame[0].permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8) for frame in clip(3)]
    for place, picture in enumerate(pictures):
        image.fromarray(picture.numpy()).save(tmp_path / f"{place}.png")
    direct, folder = inputs_of(delta, pictures), inputs_of(delta, tmp_path)
    assert len(folder) == 3 and all(torch.equal(a[0], b[0]) for a, b in zip(direct, folder, strict=True))
    assert len(inputs_of(delta, str(tmp_path), limit=2)) == 2
    assert direct[0][0].shape == (1, 3, 32, 48) and float(direct[0][0].max()) <= 1
    sizes = ((1, 3, 16, 24),)
    monkeypatch.setattr(delta, "signature", dataclasses.replace(delta.signature, sizes=sizes))
    assert inputs_of(delta, pictures)[0][0].shape == sizes[0], "a network of one size gets its size"
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        inputs_of(delta, tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"metric": "beauty"}, "no metric 'beauty'"),
        ({"method": "luck"}, "no method 'luck'"),
        ({"by": "heart"}, "by='heart'"),
    ],
    ids=str,
)
def test_bad_options(delta, options, message):
    with pytest.raises(InputError, match=message):
        deltaconvert.calibrate(delta, clip(), **options)


def test_bad_frames(delta):
    with pytest.raises(InputError, match="at least 2 frames"):
        deltaconvert.calibrate(delta, clip(1))
    with pytest.raises(InputError, match="one tensor"):
        deltaconvert.calibrate(delta, clip(1)[0])
