"""Ways to save work without thresholds of their own: frames skipped, smaller, or gated as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from benchmarks.curves.run import Run

SKIPPED = (2, 3, 5)
SCALES = (0.9, 0.75, 0.5)
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05)  # of the pixels, that moved
LEVELS = 15  # by which a pixel moves


def simple_ways(run: Run) -> None:
    for count in SKIPPED:
        found = [run.dense[place - place % count] for place in range(len(run.dense))]
        run.add("skipped frames", count, 1 / count, run.scores(found))
    for scale in SCALES:
        run.add("lower resolution", scale, *_smaller(run, scale))
    for share in SHARES:
        run.add("frame gate", share, *_gated(run, share))


def smaller(size: Sequence[int], scale: float) -> list[int]:
    """Sides that every one of the networks takes."""
    return [max(32, round(side * scale / 32) * 32) for side in size]


def _smaller(run: Run, scale: float) -> tuple[float, tuple[float, float]]:
    clip, found = run.test, []
    size = smaller(clip[0].shape[2:], scale)
    for x in clip:
        small = F.interpolate(x, size, mode="bilinear", antialias=True)
        found.append(run.task.resized(run.task.network(small), tuple(x.shape[2:])))
    work = size[0] * size[1] / (clip[0].shape[2] * clip[0].shape[3])
    return work, run.scores(found)


def _gated(run: Run, share: float) -> tuple[float, tuple[float, float]]:
    """The whole frame or nothing: it runs where more than `share` of the pixels moved."""
    last, found, ran = None, [], 0
    for place, picture in enumerate(run.task.frames(run.task.test)):
        moved = (
            last is None
            or float(((picture.int() - last.int()).abs().amax(2) > LEVELS).float().mean()) > share
        )
        if moved:
            last, ran = picture, ran + 1
        found.append(run.dense[place] if moved else found[-1])
    return ran / len(found), run.scores(found)
