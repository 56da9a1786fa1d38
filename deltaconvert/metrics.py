"""How much worse than the dense network: what `calibrate` keeps inside its budget.

A metric is a function (ours, dense) -> loss of two lists with one entry a frame: the outputs as they are, or what a
`decode` function made of them. 0 is the dense network's own answer. Detection and keypoints are COCO's, by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError

BOXES = (6,), "boxes, tensors (boxes, 6) of x1, y1, x2, y2, score, class"
PEOPLE = (17, 3), "COCO's poses, tensors (people, 17, 3) of x, y, score"
Metric = Callable[[Sequence[Any], Sequence[Any]], float]


def relative_l2(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """sqrt(sum of squared differences / sum of squares) over all outputs of all frames."""
    found = [apart(a, b) for a, b in _pairs(ours, dense)]
    square, reference, _ = torch.stack(found).sum(0).tolist() if found else (0.0, 0.0, 0.0)
    return relative(square, reference)


def apart(ours: Tensor, dense: Tensor) -> Tensor:
    """(3), float64, on their device: squares of the difference, of the dense values, and the largest difference.

    The same NaN or infinity on both sides is no difference, so that a broken frame that both networks pass on leaves no
    trace in sums over many frames. NaN or infinity on one side alone is an infinite difference.
    """
    a, b = ours.to(torch.float64), dense.to(torch.float64)
    same = (a == b) | (a.isnan() & b.isnan())
    difference = (a - b).abs().nan_to_num(math.inf, math.inf).masked_fill(same, 0.0)
    finite = b.masked_fill(~b.isfinite(), 0.0)
    return torch.stack([difference.square().sum(), finite.square().sum(), difference.max()])


def relative(square: float, reference: float) -> float:
    """The relative L2 of such sums; the absolute one where the dense values are all 0."""
    return math.sqrt(square / reference) if reference else math.sqrt(square)


def nrmse(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """Root of the mean squared difference, as a share of the dense output's range. It is PSNR as a loss: 0.01 is 40 dB,
    0.0032 is 50 dB."""
    square, count, low, high = 0.0, 0, math.inf, -math.inf
    for a, b in _pairs(ours, dense):
        square, count = square + float((a.double() - b.double()).square().sum()), count + a.numel()
        low, high = min(low, float(b.min())), max(high, float(b.max()))
    return math.sqrt(square / max(count, 1)) / max(high - low, 1e-30)


def top1(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """The share of images whose largest output is another class."""
    pairs = list(_pairs(ours, dense))
    other = sum(int((a.flatten(1).argmax(1) != b.flatten(1).argmax(1)).sum()) for a, b in pairs)
    return other / sum(len(b) for _, b in pairs)


def segmentation(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """1 - mean intersection over union of the classes that the dense network finds.

    Outputs are scores (N, classes, H, W), or labels (N, H, W) of integers.
    """
    shared: dict[int, list[int]] = {}
    for a, b in _pairs(ours, dense):
        a, b = (x.argmax(1) if x.is_floating_point() else x.long() for x in (a, b))
        for label in torch.unique(torch.cat([a.flatten(), b.flatten()])).tolist():
            count = shared.setdefault(label, [0, 0, 0])
            mine, theirs = a == label, b == label
            for place, mask in enumerate((mine & theirs, mine | theirs, theirs)):
                count[place] += int(mask.sum())
    found = [both / either for both, either, theirs in shared.values() if theirs]
    return 1 - sum(found) / len(found) if found else 0.0


def detection(ours: Sequence[Any], dense: Sequence[Any], *, iou: float = 0.5) -> float:
    """1 - COCO's average precision at that overlap, with the dense network's boxes as the truth.

    Entries: what decode gave for a frame, tensors (boxes, 6) of x1, y1, x2, y2, score, class, one or one an image.
    """
    founds, truths = _images(ours, *BOXES), _images(dense, *BOXES)
    precision = average_precision(founds, truths, iou=iou)
    return 0.0 if math.isnan(precision) else 1 - precision


def average_precision(found: Sequence[Tensor], truth: Sequence[Tensor], *, iou: float = 0.5) -> float:
    """COCO's average precision at one overlap, the mean over the classes that `truth` has; NaN where it has none.

    found: (boxes, 6) for each image: x1, y1, x2, y2, score, class. truth: the same; scores are not read.
    """

    def entry(box: list[float]) -> dict[str, Any]:
        x1, y1, x2, y2, score, label = box
        size = x2 - x1, y2 - y1
        return {
            "bbox": [x1, y1, *size],
            "area": size[0] * size[1],
            "score": score,
            "category_id": int(label) + 1,
        }

    truths, founds = (
        [[entry(box) for box in image.tolist()] for image in images] for images in (truth, found)
    )
    return _coco(truths, founds, "bbox", [iou])


def keypoints(ours: Sequence[Any], dense: Sequence[Any], *, oks: float = 0.75) -> float:
    """1 - COCO's average precision of poses at that object keypoint similarity, the dense network's as the truth.

    Entries: what decode gave for a frame, (people, 17, 3) of x, y, score.
    """

    def entry(person: Tensor) -> dict[str, Any]:
        visible = person[:, 2] > 0
        low, high = person[visible, :2].amin(0), person[visible, :2].amax(0)
        size = (high - low).clamp(min=1.0)
        flags = torch.cat([person[:, :2], visible[:, None] * 2.0], 1)
        return {
            "keypoints": flags.flatten().tolist(),
            "num_keypoints": int(visible.sum()),
            "bbox": [*low.tolist(), *size.tolist()],
            "area": float(size.prod()),
            "score": float(person[:, 2].mean()),
            "category_id": 1,
        }

    founds, truths = (
        [[entry(p) for p in image.float() if bool((p[:, 2] > 0).any())] for image in _images(frames, *PEOPLE)]
        for frames in (ours, dense)
    )
    precision = _coco(truths, founds, "keypoints", [oks])
    return 0.0 if math.isnan(precision) else 1 - precision


METRICS: dict[str, Metric] = {
    metric.__name__: metric for metric in (relative_l2, nrmse, top1, segmentation, detection, keypoints)
}


def metric_of(metric: str | Metric) -> Metric:
    """The metric of that name, or the function that it is; InputError for other names."""
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise InputError(
            f"there is no metric {metric!r}: choose from {', '.join(METRICS)}, or give a function"
        )
    return METRICS[metric]


def name_of(function: Callable[..., Any]) -> str:
    """Of a metric or a decode: its own, with what a partial binds, or that of its class."""
    if isinstance(function, partial):
        bound = [
            *map(repr, function.args),
            *(f"{name}={value!r}" for name, value in function.keywords.items()),
        ]
        return f"{name_of(function.func)}({', '.join(bound)})"
    return getattr(function, "__name__", type(function).__name__)


def _coco(truth: list[list[Any]], found: list[list[Any]], kind: str, thresholds: list[float]) -> float:
    """Mean average precision over the classes of `truth`; one list an image. NaN where it holds nothing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError('this metric needs pycocotools: pip install "deltaconvert[metrics]"') from error
    labels = sorted({entry["category_id"] for image in truth for entry in image})
    if not labels:
        return math.nan
    with contextlib.redirect_stdout(io.StringIO()):  # it reports as it goes
        sides = COCO(), COCO()
        for side, images in zip(sides, (truth, found), strict=True):
            side.dataset = _coco_dataset(images, labels)
            side.createIndex()
        judge = COCOeval(*sides, kind)
        judge.params.iouThrs = np.array(thresholds)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else math.nan


def _coco_dataset(images: list[list[Any]], labels: list[int]) -> dict[str, Any]:
    """What pycocotools reads from a file; annotations are numbered from one."""
    entries = [(place, entry) for place, image in enumerate(images) for entry in image]
    return {
        "images": [{"id": place} for place in range(len(images))],
        "categories": [{"id": label} for label in labels],
        "annotations": [
            {**entry, "id": number, "image_id": place, "iscrowd": 0}
            for number, (place, entry) in enumerate(entries, 1)
        ],
    }


def _images(frames: Sequence[Any], one: tuple[int, ...], what: str) -> list[Tensor]:
    """What a frame shows is a tensor, or a list of one for each image of its batch. one: the shape of a box or pose."""
    images = [image for frame in frames for image in (frame if isinstance(frame, list | tuple) else [frame])]
    for image in images:
        if not isinstance(image, Tensor) or tuple(image.shape[1:]) != one:
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"this metric takes {what}, and was given {given}: decode= makes them of an output"
            )
    return images


def _pairs(ours: Sequence[Any], dense: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    leaves = [
        [leaf for leaf in pytree.tree_leaves(list(frames)) if isinstance(leaf, Tensor)]
        for frames in (ours, dense)
    ]
    if not leaves[1]:
        raise InputError(
            "this metric takes tensors, and there are none in what it was given: let decode= return some"
        )
    if [a.shape[:1] for a in leaves[0]] != [b.shape[:1] for b in leaves[1]]:
        raise InputError(
            "this metric takes maps and scores, and boxes come in any number: detection compares them, or a "
            "function of yours"
        )
    return [(a, b) for a, b in zip(*leaves, strict=True) if b.numel()]
