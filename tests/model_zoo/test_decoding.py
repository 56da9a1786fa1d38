"""What the outputs of detectors and pose networks mean: boxes, joints."""

import math

import pytest
import torch

from model_zoo.boxes import suppress
from model_zoo.efficientdet import decode as decode_efficientdet
from model_zoo.efficientdet import same
from model_zoo.fastestdet import decode
from model_zoo.poses import joints
from model_zoo.retinanet import anchors
from model_zoo.retinanet import decode as decode_retinanet
from model_zoo.yolox import decode as decode_yolox


def test_suppression_is_greedy_and_within_a_class() -> None:
    box = torch.tensor([10.0, 10.0, 30.0, 30.0])
    rows = [
        torch.tensor([*box + 2, 0.8, 0]),
        torch.tensor([*box, 0.9, 0]),
        torch.tensor([*box, 0.7, 1]),
        torch.tensor([*box + 6, 0.6, 0]),
        torch.tensor([*box + 100, 0.5, 0]),
    ]
    # The row of .6 overlaps only the row of .8, which is gone by then.
    kept = suppress(torch.stack(rows), overlap=0.45)
    torch.testing.assert_close(kept, torch.stack([rows[1], rows[2], rows[3], rows[4]]))
    assert suppress(torch.zeros(0, 6), overlap=0.45).shape == (0, 6)


def test_decode_places_one_box() -> None:
    output = torch.zeros(2, 85, 4, 6)
    output[0, 0, 2, 3] = output[0, 5 + 16, 2, 3] = 1.0
    found, nothing = decode(output)
    assert found.tolist() == [[48 - 88, 32 - 88, 48 + 88, 32 + 88, 1, 16]]
    assert nothing.shape == (0, 6)


def test_yoloxs_decode_places_one_box() -> None:
    outputs = tuple(torch.full((2, 85, 96 // stride, 64 // stride), -9.0) for stride in (8, 16, 32))
    maps = outputs[1][0]
    maps[4, 2, 3] = maps[5 + 16, 2, 3] = 9.0
    maps[:4, 2, 3] = torch.tensor([0.5, -0.25, 0.0, math.log(3)])
    found, nothing = decode_yolox(outputs)
    centre, half = torch.tensor([3.5, 1.75]) * 16, torch.tensor([8.0, 24.0])
    score = torch.tensor(9.0).sigmoid().square()
    torch.testing.assert_close(found, torch.tensor([[*centre - half, *centre + half, score, 16]]))
    assert nothing.shape == (0, 6)


@pytest.mark.parametrize(
    ("side", "kernel", "before", "after"),
    [(6, 3, 0, 1), (7, 3, 1, 1), (1, 3, 1, 1), (6, 5, 1, 2), (7, 5, 2, 2)],
)
def test_same_padding_puts_what_is_odd_last(side: int, kernel: int, before: int, after: int) -> None:
    padded = same(torch.ones(1, 1, side, 4), kernel, 2)
    assert padded[0, 0, :, kernel // 2].tolist() == [0.0] * before + [1.0] * side + [0.0] * after


def test_efficientdets_decode_places_one_box() -> None:
    sides = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    output = [(torch.full((2, 9 * 90, *side), -9.0), torch.zeros(2, 9 * 4, *side)) for side in sides]
    logits, steps = output[1]
    logits[0, 1 * 90 + 17, 1, 3] = 9.0  # the wide anchor of the smallest size: 44.8 high, 89.6 wide
    steps[0, 1 * 4 : 2 * 4, 1, 3] = torch.tensor([0.25, 0.0, math.log(2), 0.0])
    found, nothing = decode_efficientdet(output)
    x, y = 3.5 * 16, 1.5 * 16 + 0.25 * 44.8
    expected = [x - 44.8, y - 44.8, x + 44.8, y + 44.8, torch.tensor(9.0).sigmoid(), 17]
    torch.testing.assert_close(found, torch.tensor([expected]))
    assert nothing.shape == (0, 6)


def test_anchors_of_retinanet() -> None:
    """By hand: 64 pixels in 3 cells are 21 apart; tall, square and wide boxes of one area."""
    found = anchors(32, (2, 3), (32, 64))
    assert found.shape == (2 * 3 * 9, 4)
    assert found[:9:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert found[3 * 9 + 2 * 9 + 3].tolist() == [42 - 16, 0, 42 + 16, 32]


def test_retinanets_decode_places_one_box_and_cuts_it_to_the_frame() -> None:
    size = (64, 96)
    sides = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    output = [(torch.full((2, 9 * 91, *side), -9.0), torch.zeros(2, 9 * 4, *side)) for side in sides]
    logits, steps = output[0]
    logits[0, 3 * 91 + 17, 4, 5] = logits[0, 3 * 91 + 18, 0, 0] = 9.0  # square anchors of 32 pixels
    steps[0, 3 * 4 : 4 * 4, 4, 5] = torch.tensor([0.25, 0.0, 0.0, -torch.log(torch.tensor(2.0))])
    found, nothing = decode_retinanet(output, size)
    expected = [[40 + 8 - 16, 32 - 8, 40 + 8 + 16, 32 + 8, 17], [0, 0, 16, 16, 18]]
    boxes = found[found[:, 5].argsort()]
    torch.testing.assert_close(boxes[:, [0, 1, 2, 3, 5]], torch.tensor(expected, dtype=torch.float32))
    assert found[:, 4].tolist() == pytest.approx([0.99987661] * 2)  # sigmoid(9)
    assert nothing.shape == (0, 6)


def test_joints_lean_to_their_larger_neighbours() -> None:
    heat = torch.zeros(2, 2, 5, 7)
    heat[0, 0, 2, 3], heat[0, 0, 2, 4], heat[0, 0, 1, 3] = 3.0, 2.0, 1.0
    heat[0, 1, 4, 0], heat[0, 1, 3, 0] = 2.0, 1.0
    heat[1, 1, 3, 2] = 1.0
    found = joints(heat)
    assert found.shape == (2, 2, 3)
    assert found[0].tolist() == [[4 * 3.25, 4 * 1.75, 3], [0, 16, 2]]
    assert found[1].tolist() == [[0, 0, 0], [8, 12, 1]]
