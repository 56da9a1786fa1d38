"""road: ESPNet's label of each pixel of a street. bottle: MobileNetV2's class of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks.frames import clip_of, sample
from benchmarks.tasks.task import Task

UNSURE = 255  # instead of a label


def road(calibration: int, test: int) -> Task:
    import zoo

    return Task(
        name="road",
        network=zoo.load("espnet_city"),
        frames=clip_of("bgs_video.avi"),
        calibration=sample(0, 170, calibration),
        test=range(374 - min(test, 200), 374),
        prepare=_normalised,
        decode=_labels,
        resized=lambda output, size: _labels(F.interpolate(output, size, mode="bilinear")),
        score=mean_iou,
        plain=mean_iou,
        sure=_sure_pixels,
        truth="mean IoU with the dense network's labels where it is sure, of classes on 1 % of these pixels and more",
        accepted=0.005,
        features=lambda output: output.float().softmax(1),
        streams=20,
        spent=0.02,
        precise=True,
        metric=error_by_class,
    )


def _normalised(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """As ESPNet was trained: B G R, cut to a multiple of 8."""
    x = x if size is None else F.interpolate(x, size=size, mode="bilinear")
    mean, std = torch.tensor([72.39, 82.91, 73.16]), torch.tensor([45.32, 46.15, 44.91])
    x = (x.flip(1) - mean.view(1, 3, 1, 1).to(x)) / std.view(1, 3, 1, 1).to(x) / 255
    return x[:, :, : x.shape[2] // 8 * 8, : x.shape[3] // 8 * 8]


def _labels(output: Any) -> Tensor:
    return output.argmax(1).to(torch.uint8)


def mean_iou(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
    """Over the classes on 1 % of the pixels and more, where `dense` is not UNSURE."""
    counts = [x.flatten().long().bincount(minlength=UNSURE + 1)[:UNSURE] for x in dense]
    shares = torch.stack(counts).sum(0).double()
    ious = []
    for label in (shares / shares.sum() >= 0.01).nonzero().flatten().tolist():
        pairs = [((a == label) & (b != UNSURE), b == label) for a, b in zip(found, dense, strict=True)]
        both = sum((a & b).sum() for a, b in pairs)
        ious.append(float(both / sum((a | b).sum() for a, b in pairs)))
    return sum(ious) / len(ious)


def _sure_pixels(dense: Any, noisy: Sequence[Any]) -> Any:
    kept = torch.stack([other == dense for other in noisy]).all(0)
    return torch.where(kept, dense, UNSURE)


def error_by_class(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """Relative L2 of each class's probabilities, root mean square over the classes that dense sees anywhere."""
    squares = [(a - b).square().sum((0, 2, 3)) for a, b in zip(ours, dense, strict=True)]
    references = [b.square().sum((0, 2, 3)) for b in dense]
    seen = torch.stack([b.amax((0, 2, 3)) for b in dense]).amax(0) > 0.5
    relative = torch.stack(squares).sum(0) / torch.stack(references).sum(0)
    return float(relative[seen].mean().sqrt())


def bottle(calibration: int, test: int) -> Task:
    """In one frame of fourteen two classes are nearly a tie (a water bottle, a window screen): noise of one grey level
    decides it. `score` leaves these frames out."""
    import zoo

    return Task(
        name="bottle",
        network=zoo.load("mobilenetv2"),
        frames=clip_of("intel_bottle-detection.mp4"),
        calibration=sample(100, 580, calibration),
        test=range(600, 600 + test * 3 // 2),  # 1 of 200 is all that is accepted
        prepare=lambda x, size=(352, 640): F.interpolate(x, size=size, mode="bilinear") / 127.5 - 1,
        decode=_class,
        resized=lambda output, size: _class(output),
        score=same_class,
        plain=same_class,
        sure=_sure_class,
        truth="frames with the dense network's class, of those where it is sure",
        accepted=0.005,
        features=lambda output: output.float(),
        streams=24,
        spent=0.05,
        metric=error_among_the_first,
    )


def _class(output: Any) -> Tensor:
    return output.argmax().cpu()


def same_class(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
    """The share of the frames, of those where `dense` is not -1."""
    pairs = [(int(a), int(b)) for a, b in zip(found, dense, strict=True) if b >= 0]
    return sum(a == b for a, b in pairs) / len(pairs)


def _sure_class(dense: Any, noisy: Sequence[Any]) -> Any:
    return dense if all(bool(other == dense) for other in noisy) else torch.full_like(dense, -1)


def error_among_the_first(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    """Relative L2 of the scores of the dense network's first five classes, from their mean: between these it is
    decided."""
    theirs = torch.cat(list(dense))
    first = theirs.topk(5, 1).indices
    pair = [x.gather(1, first) for x in (torch.cat(list(ours)), theirs)]
    a, b = (x - x.mean(1, keepdim=True) for x in pair)
    return float((a - b).norm() / b.norm())
