"""juggle: PoseNet's key points of a man."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks.frames import clip_of, sample
from benchmarks.tasks.task import Task

SIZE = (353, 641)  # of the frames that PoseNet takes


def juggle(calibration: int, test: int) -> Task:
    import zoo

    return Task(
        name="juggle",
        network=zoo.load("posenet"),
        frames=clip_of("sam2_05_default_juggle.mp4"),
        calibration=sample(0, 47, calibration),
        test=range(247 - min(test, 200), 247),
        prepare=_prepared,
        decode=lambda output: key_points(output, SIZE),
        resized=key_points,
        score=share_nearby,
        plain=share_nearby,
        sure=_sure_points,
        truth="key points within 8 pixels of the dense network's, of those it is sure of",
        accepted=0.005,
        features=_heat_maps,
        streams=40,
        spent=0.05,
    )


def _prepared(x: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    return (F.interpolate(x, size=size, mode="bilinear", antialias=True) - 128) / 128


def key_points(output: Any, size: tuple[int, int]) -> Tensor:
    """(17, 3): x, y in pixels of the full input, and the probability: of the highest place of each heat map."""
    half = size[0] // 2, size[1] // 2
    heat = F.interpolate(output[0].float(), size=half, mode="bicubic", align_corners=True)[0]
    best, place = heat.flatten(1).max(1)
    x, y = place % heat.shape[2], place // heat.shape[2]
    return torch.stack([x * 2.0, y * 2.0, best.sigmoid()], 1).cpu()


def share_nearby(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
    """The share of the key points that the dense network is sure of which are within 8 pixels of where it sees them
    (a thirtieth of the man's height)."""
    hits = total = 0
    for ours, theirs in zip(found, dense, strict=True):
        sure = theirs[:, 2] > 0.5
        hits += int(((ours - theirs)[:, :2].norm(dim=1)[sure] <= 8).sum())
        total += int(sure.sum())
    return hits / max(total, 1)


def _sure_points(dense: Any, noisy: Sequence[Any]) -> Any:
    """Without the points that noise moves as far: two wrists, or a ball and a hand, that look alike."""
    moved = torch.stack([(other - dense)[:, :2].norm(dim=1) > 8 for other in noisy]).any(0)
    return torch.cat([dense[:, :2], torch.where(moved, 0.0, dense[:, 2])[:, None]], 1)


def _heat_maps(output: Any) -> Tensor:
    """What thresholds are calibrated by: a point itself jumps where two peaks are close."""
    return output[0].float().sigmoid()
