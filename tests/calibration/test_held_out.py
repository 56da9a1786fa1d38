"""calibration/held_out.py: what was found is held to other frames."""

from __future__ import annotations

import pytest
from calibrating import clip, network

import deltaconvert
from deltaconvert.calibration.held_out import held_to
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2


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
