"""deltaconvert/metrics.py: losses that were checked by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltaconvert.errors import InputError
from deltaconvert.metrics import (
    METRICS,
    apart,
    average_precision,
    detection,
    keypoints,
    metric_of,
    name_of,
    nrmse,
    relative_l2,
    segmentation,
    top1,
)


def test_differences_by_hand():
    dense = [torch.tensor([[3.0, 0.0]]), {"a": torch.tensor([[0.0, 4.0]])}]
    ours = [torch.tensor([[3.0, 1.0]]), {"a": torch.tensor([[0.0, 4.0]])}]
    assert relative_l2(ours, dense) == pytest.approx(1 / 5)
    assert nrmse(ours, dense) == pytest.approx(math.sqrt(1 / 4) / 4)
    assert top1(ours, dense) == 0
    assert top1([torch.tensor([[0.0, 1.0], [1.0, 0.0]])], [torch.tensor([[1.0, 0.0], [1.0, 0.0]])]) == 0.5


def test_segmentation_counts_what_the_dense_network_finds():
    dense = [torch.tensor([[[0, 0, 1, 1]]])]
    assert segmentation(dense, dense) == 0
    assert segmentation([torch.tensor([[[0, 0, 0, 1]]])], dense) == pytest.approx(1 - (2 / 3 + 1 / 2) / 2)
    scores = torch.nn.functional.one_hot(dense[0], 3).permute(0, 3, 1, 2).float()
    assert segmentation([scores], dense) == 0


@given(st.integers(0, 99))
def test_the_dense_answer_has_no_loss(seed):
    draw = torch.Generator().manual_seed(seed)
    outputs = [torch.rand(2, 5, 4, 3, generator=draw) for _ in range(3)]
    for name in ("relative_l2", "nrmse", "top1", "segmentation"):
        assert METRICS[name](outputs, outputs) == 0


def test_detection_by_hand():
    """One class is found with another score, one box of two is missed, and one is found that does not exist."""
    pytest.importorskip("pycocotools")
    dense = [torch.tensor([[0.0, 0, 10, 10, 0.9, 2], [20, 20, 30, 40, 0.8, 5], [50, 50, 60, 60, 0.7, 5]])]
    assert detection(dense, dense) == pytest.approx(0)
    ours = [torch.tensor([[1.0, 0, 10, 10, 0.5, 2], [20, 20, 30, 38, 0.6, 5], [0, 0, 5, 5, 0.3, 7]])]
    # class 2: all of it; class 5: precision 1 up to a recall of 1/2, which is 51 of COCO's 101 recalls
    assert detection(ours, dense) == pytest.approx(1 - (1 + 51 / 101) / 2)
    assert math.isnan(average_precision(ours, [torch.zeros(0, 6)]))
    assert detection([torch.zeros(0, 6)], [torch.zeros(0, 6)]) == 0


def test_keypoints_that_stay_lose_nothing_and_moved_ones_all():
    pytest.importorskip("pycocotools")
    draw = torch.Generator().manual_seed(0)
    person = torch.cat([torch.rand(17, 2, generator=draw) * 100, torch.ones(17, 1)], 1)[None]
    assert keypoints([person], [person]) == pytest.approx(0)
    assert keypoints([person + torch.tensor([60.0, 0, 0])], [person]) == pytest.approx(1)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="choose from relative_l2"):
        metric_of("accuracy")


@pytest.mark.parametrize(
    ("metric", "output", "message"),
    [
        (detection, torch.rand(1, 85, 4, 4), r"takes boxes, .* was given \(1, 85, 4, 4\): decode="),
        (detection, {"boxes": 3}, "was given dict"),
        (keypoints, torch.rand(2, 5, 3), r"takes COCO's poses, .* was given \(2, 5, 3\)"),
        (relative_l2, [[1.0, 2.0]], "there are none"),
        (top1, "cat", "there are none"),
    ],
    ids=["maps", "a dict", "five points", "numbers", "a word"],
)
def test_outputs_that_a_metric_cannot_compare(metric, output, message):
    with pytest.raises(InputError, match=message):
        metric([output], [output])


def test_boxes_are_no_maps():
    with pytest.raises(InputError, match="boxes come in any number"):
        relative_l2([torch.rand(3, 6)], [torch.rand(2, 6)])


def test_the_same_nan_is_no_difference():
    dense = torch.tensor([3.0, math.nan, math.inf, 4.0])
    assert apart(dense.clone(), dense).tolist() == [0, 25, 0]
    assert relative_l2([dense.clone()], [dense]) == 0
    for place, value in ((1, 2.0), (2, -math.inf), (0, math.nan)):
        ours = dense.clone()
        ours[place] = value
        assert apart(ours, dense).tolist() == [math.inf, 25, math.inf]
        assert relative_l2([ours], [dense]) == math.inf


def test_a_metric_is_named_with_what_it_binds():
    assert name_of(detection) == "detection"
    assert name_of(partial(detection, iou=0.75)) == "detection(iou=0.75)"
    assert name_of(torch.nn.ReLU()) == "ReLU"
