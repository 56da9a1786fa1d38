"""backends/cuda/tuning.py: what is measured, kept and read again. Needs no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from deltaconvert.backends.cuda.marks import list_of
from deltaconvert.backends.cuda.tuning import BOXES, Choices, boxes, weights_of
from deltaconvert.reach import Everything, Window

WEIGHTS = dict(enumerate(BOXES.values()))
SPEED = {  # at each of BOXES
    "even": (1.0, 1.0, 2.0, 4.0),
    "small": (1.2, 0.9, 3.0, 6.0),
    "large": (1.4, 1.8, 1.9, 3.0),
    "hopeless": (9.0, 0.1, 0.1, 0.1),
}


class Clock:
    """Seconds of candidates, and how often it was asked."""

    def __init__(self, speed=SPEED):
        self.asked, self.speed = 0, speed

    def __call__(self, name, box):
        self.asked += 1
        return self.speed[name][box]


def test_the_least_time_over_all_shares_wins_and_hopeless_ones_are_measured_once(tmp_path):
    clock = Clock()
    # even: 16, small: 19.5, large: 20.9
    assert Choices(tmp_path / "gpu.json").best("layer", list(SPEED), clock, WEIGHTS) == "even"
    assert clock.asked == 4 + 3 * 3


def test_a_choice_is_kept_for_the_next_run(tmp_path):
    path = tmp_path / "new" / "gpu.json"
    first = Choices(path).best("layer", list(SPEED), Clock(), WEIGHTS)
    other = Clock({**SPEED, "large": (0.1,) * 4})
    assert Choices(path).best("layer", list(SPEED), other, WEIGHTS) == first
    assert other.asked == 0
    assert Choices(path).best("another layer", list(SPEED), other, WEIGHTS) == "large"
    assert set(json.loads(path.read_text())) == {"layer", "another layer"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"layer": 3}', '{"layer": "gone"}'])
def test_a_file_that_is_not_ours_is_measured_again(tmp_path, text):
    path = tmp_path / "gpu.json"
    path.write_text(text)
    assert Choices(path).best("layer", list(SPEED), Clock(), WEIGHTS) == "even"
    assert json.loads(path.read_text())["layer"] == "even"


def test_two_programs_keep_each_others_choices(tmp_path):
    path = tmp_path / "gpu.json"
    one, two = Choices(path), Choices(path)
    one.best("a", list(SPEED), Clock(), WEIGHTS)
    clock = Clock()
    assert two.best("a", list(SPEED), clock, WEIGHTS) == "even"
    assert clock.asked == 0
    two.best("b", list(SPEED), clock, WEIGHTS)
    assert set(json.loads(path.read_text())) == {"a", "b"}


def test_of_two_that_measure_a_layer_at_once_the_first_to_end_decides(tmp_path):
    path = tmp_path / "gpu.json"
    one, two = Choices(path), Choices(path)

    class Slow(Clock):
        def __call__(self, name, box):
            assert two.best("layer", list(SPEED), Clock(), WEIGHTS) == "even"
            return super().__call__(name, box)

    slow = Slow({**SPEED, "large": (0.1,) * 4})
    assert one.best("layer", list(SPEED), slow, WEIGHTS) == "even"
    assert slow.asked > 0
    assert json.loads(path.read_text()) == {"layer": "even"}


def test_without_a_place_for_the_file_the_first_candidate_is_taken_always(tmp_path):
    (tmp_path / "file").write_text("")
    clock = Clock({"slow": (9.0,) * 4, "fast": (1.0,) * 4})
    choices = Choices(tmp_path / "file" / "gpu.json")
    assert [choices.best("layer", ["slow", "fast"], clock, WEIGHTS) for _ in range(2)] == ["slow", "slow"]
    assert Choices(None).best("layer", ["slow", "fast"], clock, WEIGHTS) == "slow"


def test_a_single_candidate_is_not_measured(tmp_path):
    assert Choices(tmp_path / "gpu.json").best("layer", ["only"], Clock({}), WEIGHTS) == "only"


def test_a_box_of_pixels():
    some, _, _, every = boxes((4, 6), torch.device("cpu"))
    every, some = (list_of(mask.expand(2, -1, -1, -1)) for mask in (every, some))
    assert every.places.tolist() == list(range(48))
    assert some.places.tolist() == [8, 32]  # 5 %, one pixel of 24
    assert some.bits.tolist() == [[[0], [4], [0], [0]]] * 2


def test_what_becomes_of_boxes_decides_how_often_each_is_measured():
    masks = boxes((40, 60), torch.device("cpu"))
    assert weights_of(masks) == WEIGHTS
    grown = Window((3, 3), (1, 1), (12, 12), (12, 12), (40, 60), (40, 60)).spread(masks)
    assert weights_of(grown) == WEIGHTS
    assert weights_of(Everything((4, 6)).spread(masks)) == {0: sum(BOXES.values())}
