"""backends/cuda/tuning.py: what is measured, kept and read again. Needs no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from deltaconvert.backends.cuda.tuning import SHARES, Choices, places_of_a_box

SPEED = {  # at each of SHARES
    "even": (1.0, 1.0, 2.0, 4.0),
    "small": (1.2, 0.9, 3.0, 6.0),
    "large": (1.4, 1.8, 1.9, 3.0),
    "hopeless": (9.0, 0.1, 0.1, 0.1),
}


class Clock:
    """Seconds of candidates, and how often it was asked."""

    def __init__(self, speed=SPEED):
        self.asked, self.speed = 0, speed

    def __call__(self, name, share):
        self.asked += 1
        return self.speed[name][list(SHARES).index(share)]


def test_the_least_time_over_all_shares_wins_and_hopeless_ones_are_measured_once(tmp_path):
    clock = Clock()
    # even: 12, small: 15.3, large: 14.5
    assert Choices(tmp_path / "gpu.json").best("layer", list(SPEED), clock) == "even"
    assert clock.asked == 4 + 3 * 3


def test_a_choice_is_kept_for_the_next_run(tmp_path):
    path = tmp_path / "new" / "gpu.json"
    first = Choices(path).best("layer", list(SPEED), Clock())
    other = Clock({**SPEED, "large": (0.1,) * 4})
    assert Choices(path).best("layer", list(SPEED), other) == first
    assert other.asked == 0
    assert Choices(path).best("another layer", list(SPEED), other) == "large"
    assert set(json.loads(path.read_text())) == {"layer", "another layer"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"layer": 3}', '{"layer": "gone"}'])
def test_a_file_that_is_not_ours_is_measured_again(tmp_path, text):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    assert Choices(path).best("layer", list(SPEED), Clock()) == "even"
    assert json.loads(path.read_text())["layer"] == "even"


def test_two_programs_keep_each_others_choices(tmp_path):
    path = tmp_path / "gpu.json"
    one, two = Choices(path), Choices(path)
    one.best("a", list(SPEED), Clock())
    clock = Clock()
    assert two.best("a", list(SPEED), clock) == "even"
    assert clock.asked == 0
    two.best("b", list(SPEED), clock)
    assert set(json.loads(path.read_text())) == {"a", "b"}


def test_of_two_that_measure_a_layer_at_once_the_first_to_end_decides(tmp_path):
    path = tmp_path / "gpu.json"
    one, two = Choices(path), Choices(path)

    class Slow(Clock):
        def __call__(self, name, share):
            assert two.best("layer", list(SPEED), Clock()) == "even"
            return super().__call__(name, share)

    slow = Slow({**SPEED, "large": (0.1,) * 4})
    assert one.best("layer", list(SPEED), slow) == "even"
    assert slow.asked > 0
    assert json.loads(path.read_text()) == {"layer": "even"}


def test_without_a_place_for_the_file_the_first_candidate_is_taken_always(tmp_path):
    (tmp_path / "file").write_text("")
    clock = Clock({"slow": (9.0,) * 4, "fast": (1.0,) * 4})
    choices = Choices(tmp_path / "file" / "gpu.json")
    assert [choices.best("layer", ["slow", "fast"], clock) for _ in range(2)] == ["slow", "slow"]
    assert Choices(None).best("layer", ["slow", "fast"], clock) == "slow"


def test_a_single_candidate_is_not_measured(tmp_path):
    assert Choices(tmp_path / "gpu.json").best("layer", ["only"], Clock({})) == "only"


def test_a_box_of_pixels():
    assert places_of_a_box((2, 3, 4, 6), 1.0, torch.device("cpu")).tolist() == list(range(48))
    assert places_of_a_box((2, 3, 4, 6), 0.25, torch.device("cpu")).tolist() == [
        stream * 24 + y * 6 + x for stream in (0, 1) for y in (1, 2) for x in (1, 2, 3)
    ]
