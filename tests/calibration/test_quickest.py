"""calibration/quickest.py: the clock decides."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from calibrating import Made, clip, network
from torch import Tensor

import deltaconvert
from deltaconvert.calibration.quickest import quickest
from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2


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
