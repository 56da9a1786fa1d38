"""calibration/held_out.py: what was found is held to other frames."""

from __future__ import annotations

import pytest
from calibrating import clip, network

import deltaconvert
from deltaconvert.calibration.held_out import Held, held_to, in_parts
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.errors import InputError
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
    assert held.checked_before == pytest.approx(lost[0], rel=1e-3)
    assert f"thresholds were lowered: it was {lost[0]:.3f}"[:-1] in str(held)


def test_what_holds_on_other_frames_stays_and_what_never_holds_goes(delta):
    frames = [[x] for x in clip()]
    setting = Setting((0.02, 0.05, 0.05))
    known = Trials(delta, frames, relative_l2)
    loss = known(setting).loss
    for budget in (loss * 1.1, loss * 0.5):
        held = held_to(setting, known, Trials(delta, frames[2:], relative_l2), budget)
        assert 0 < held.loss <= budget and (held.setting == setting) == (budget > loss)
        assert (held.before == held.loss) == (budget > loss)
    hopeless = Trials(delta, frames[2:], lambda ours, dense: 1.0)
    assert held_to(setting, known, hopeless, 0.5) == Held(Setting((0.0,) * 3), 1.0, 1.0)


def test_each_part_of_the_frames_keeps_the_budget_by_itself(delta):
    """A scene that stands still behind one that does not: the mean of both is within the budget, the first is not."""
    moving = [frame * 0.2 for frame in clip(6, seed=3)]
    frames = [*moving, *[moving[-1] * 5] * 6]
    options = {"budget": 0.02, "gates": [Gate()], "rounds": 0, "progress": False, "check": frames}
    lost = {}
    for parts in (1, 2):
        found = deltaconvert.calibrate(delta, clip(), **options, check_parts=parts)
        ours, dense = (
            [found.model(frame) for frame in frames],
            [network()(frame).detach() for frame in frames],
        )
        lost[parts] = relative_l2(ours[:6], dense[:6])
        whole = relative_l2(ours, dense)
        assert found.checked == pytest.approx(lost[2] if parts == 2 else whole, rel=1e-3) and whole <= 0.02
    assert lost[2] <= 0.02 < lost[1]


def test_parts_are_runs_of_all_frames():
    def metric(ours, dense):
        seen.append((ours, dense))
        return sum(ours)

    seen: list[tuple[list[int], list[int]]] = []
    assert in_parts(metric, 3)([1, 5, 2, 2, 2, 1, 1], [*"abcdefg"]) == 6
    assert seen == [([1, 5], ["a", "b"]), ([2, 2], ["c", "d"]), ([2, 1, 1], ["e", "f", "g"])]
    assert in_parts(metric, 1) is metric


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"check_parts": 0, "check": clip()}, "check_parts=0: it is a whole number from 1"),
        ({"check_parts": 3}, "none were given"),
        ({"check_parts": 7, "check": clip()}, "there are 6 frames to check with"),
    ],
)
def test_parts_that_there_are_not(delta, named, why):
    with pytest.raises(InputError, match=why):
        deltaconvert.calibrate(delta, clip(), progress=False, **named)
