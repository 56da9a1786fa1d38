"""calibration/search.py and moves.py: the least work within the budget."""

from __future__ import annotations

import importlib

import pytest
import torch
from calibrating import Made, clip, network
from torch import nn

import deltaconvert
from deltaconvert.calibration.moves import crossed, in_runs
from deltaconvert.calibration.search import GATES, Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2

calibration = importlib.import_module("deltaconvert.calibrate")  # the package's name of that is the function


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


def test_a_search_that_was_cut_off_spends_its_budget(delta):
    search = Search(Trials(delta, [[x] for x in clip()], relative_l2), 0.012)
    small = Setting((0.04,) * 3)
    before = search.look(small)
    found = search.look(search.spent())
    assert before.loss < 0.008 < found.loss <= 0.012 and found.work < 0.9 * before.work


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


@pytest.mark.parametrize("rounds", [0, 2])
def test_how_many_trials_to_expect(rounds):
    """Higher thresholds lose more and save less and less; dilation and narrow changes are worth something."""

    def rule(setting):
        loss = sum((share * (1 + place % 3)) ** 2 for place, share in enumerate(setting.shares)) ** 0.5 / 20
        work = sum(1 / (1 + 20 * share) for share in setting.shares) / len(setting.shares)
        return loss * (0.7 if setting.gate.dilate else 1), work + setting.gate.dilate / 6400

    search = Search(Made(rule, layers=20), budget=0.02)
    search.allocate(GATES, rounds)
    assert search.expected("allocate", GATES, rounds) == pytest.approx(len(search.tried), rel=0.25)


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
