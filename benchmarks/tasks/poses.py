"""juggle: PoseNet's key points of a man."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks.frames import clip_of, sample
from benchmarks.tasks.task import Task


def juggle(calibration: int, test: int) -> Task:
    import zoo

    def prepare(x: Tensor, size: tuple[int, int] = (353, 641)) -> Tensor:
        return (F.interpolate(x, size=size, mode="bilinear", antialias=True) - 128) / 128

    def decode(output: Any) -> Tensor:
        return points(output, (353, 641))

    def points(output: Any, size: tuple[int, int]) -> Tensor:
        """(17, 3): x, y in pixels of the full input, and the probability: of the highest place of each heat map."""
        heat = F.interpolate(
            output[0].float(), size=(size[0] // 2, size[1] // 2), mode="bicubic", align_corners=True
        )[0]
        best, place = heat.flatten(1).max(1)
        x, y = place % heat.shape[2], place // heat.shape[2]
        return torch.stack([x * 2.0, y * 2.0, best.sigmoid()], 1).cpu()

    def score(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
        """The share of the key points that the dense network is sure of which are within 8 pixels of where it sees them
        (a thirtieth of the man's height)."""
        hits = total = 0
        for ours, theirs in zip(found, dense, strict=True):
            sure = theirs[:, 2] > 0.5
            hits += int(((ours - theirs)[:, :2].norm(dim=1)[sure] <= 8).sum())
            total += int(sure.sum())
        return hits / max(total, 1)

    def sure(dense: Any, noisy: Sequence[Any]) -> Any:
        """Without the points that noise moves as far: two wrists, or a ball and a hand, that look alike."""
        moved = torch.stack([(other - dense)[:, :2].norm(dim=1) > 8 for other in noisy]).any(0)
        return torch.cat([dense[:, :2], torch.where(moved, 0.0, dense[:, 2])[:, None]], 1)

    return Task(
        name="juggle",
        network=zoo.load("posenet"),
        frames=clip_of("sam2_05_default_juggle.mp4"),
        calibration=sample(0, 47, calibration),
        test=range(247 - min(test, 200), 247),
        prepare=prepare,
        decode=decode,
        resized=points,
        score=score,
        plain=score,
        sure=sure,
        truth="key points within 8 pixels of the dense network's, of those it is sure of",
        accepted=0.005,
        features=lambda output: (
            output[0].float().sigmoid()
        ),  # the heat maps: a point jumps where two peaks are close
        streams=40,
        spent=0.05,
    )
