"""calibration/trials.py: what a setting costs and saves on a clip, however it is played."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from calibrating import clip, network
from torch import Tensor, nn

import deltaconvert
from deltaconvert.calibration.crew import side_by_side
from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.errors import DeltaConvertError
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2


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


def test_frames_are_batches_of_images():
    """Whatever a gate keeps between frames, it keeps of each image: a trial loses what the model does."""
    net, frames = network(), [torch.cat(pair) for pair in zip(clip(), clip(seed=1), strict=True)]
    trials = Trials(deltaconvert.convert(net, frames[0]), [[x] for x in frames], relative_l2)
    setting = Setting((0.1, 0.0, 0.0), gate=Gate(smooth=3, recent=3, noise=1.0, peak=64.0))
    delta = deltaconvert.convert(net, frames[0], threshold=trials.thresholds(setting), backend="reference")
    lost = relative_l2([delta(frame) for frame in frames], [net(frame) for frame in frames])
    assert trials(setting).loss == pytest.approx(lost, rel=1e-4) and lost > 0


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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_under_way_is_broken_off(delta, workers, tmp_path, monkeypatch):
    """The time is over within the second one: the first counts, in the search and in the file."""
    now, played = 0, []

    class Slow(Trials):
        def _run(self, frame):
            nonlocal now
            now += 1
            played.append(frame)
            return super()._run(frame)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    frames, settings = [[x] for x in clip()], [Setting((s,) * 3) for s in (0.1, 0.2, 0.3, 0.4, 0.5)]
    trials = Slow(delta, frames, relative_l2, file=tmp_path / "kept", workers=workers)
    search = Search(trials, 0.05, until=7)  # by the clock of each process
    with pytest.raises(TimeoutError):
        search.look_at(settings)
    assert list(search.tried) == settings[:workers] and trials.count == workers
    assert len((tmp_path / "kept").read_text().splitlines()) == workers
    assert len(played) == (8 if workers == 1 else 0)  # in this process
    assert search.look(settings[0]).loss > 0  # what is known takes no time


def test_the_work_of_a_batch_is_that_of_all_its_images(delta):
    frames = clip(3)
    still = [[torch.cat((frames[0], frame))] for frame in frames]
    moving = [[torch.cat((frame, frame))] for frame in frames]
    half, whole = (
        Trials(deltaconvert.convert(network(), calls[0][0]), calls, relative_l2) for calls in (still, moving)
    )
    everywhere = Setting((0.0,) * len(half.sites))
    assert half(everywhere).work == pytest.approx(whole(everywhere).work / 2, rel=1e-6) != 0


def test_workers_end_with_the_one_that_asks():
    """Ctrl-C reaches them as well: they leave it to the first process, and are gone after it."""

    def work(item: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(item)
        return item

    results = side_by_side(work, [0, 0, 60, 60], workers=2)
    assert sorted([next(results), next(results)]) == [(0, 0), (1, 0)]
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


def test_a_worker_that_fails_is_told(delta):
    def broken(ours, dense):
        raise ValueError("no such metric")

    with pytest.raises(DeltaConvertError, match="a worker ended"):
        Trials(delta, [[x] for x in clip()], broken, workers=2).many([Setting((s,) * 3) for s in (0.1, 0.2)])
