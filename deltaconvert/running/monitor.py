"""The error that a running network makes: random tiles of its output are computed again from scratch, now and then.

Errors of thresholds do not add up, but they pass through all later layers, and a scene that creeps below every
threshold is never updated. Only the dense network can tell how large they are. It runs on the part of the frame that a
tile's outputs depend on (`tile.py`), or on the whole frame where they depend on all of it. What is found stays on the
device until somebody asks.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.metrics import relative
from deltaconvert.plan import Plan
from deltaconvert.running.tile import View

KEPT = 1000  # looks whose errors are kept one by one


@dataclass(frozen=True)
class Observed:
    """What a monitor found, against the dense network on the same frame.

    looks: frames that were looked at. relative: L2 of the differences to that of the dense values, over all looks;
    maximum: the largest difference; each: the relative error of each of the last looks, in order. recomputed: the mean
    share of the frame that a look computes again. Outputs that differ in shape are infinitely far apart.
    """

    looks: int
    relative: float
    maximum: float
    each: list[float]
    recomputed: float

    def to_json(self) -> dict[str, Any]:
        """None for what is not finite."""
        finite = {name: _finite(value) for name, value in asdict(self).items() if name != "each"}
        return {**finite, "each": [_finite(error) for error in self.each]}

    def __str__(self) -> str:
        if not self.looks:
            return "error observed: no frame was looked at yet"
        return (
            f"error observed in {self.looks} frames: relative L2 {self.relative:.3g}, in the last {self.each[-1]:.3g}, "
            f"largest {self.maximum:.3g}; a look computes {self.recomputed:.0%} of a frame"
        )


class Monitor:
    """Looks at one tile of `tile` pixels in every `every`th frame, at the same place in each stream.

    dense: the network in its normal form. seed: of the places of the tiles.
    """

    def __init__(self, dense: fx.GraphModule, every: int, tile: int, seed: int):
        self.dense, self.every, self.tile = dense, every, tile
        self._draw = random.Random(seed)
        self._frames = 0
        self._views: dict[int, View] = {}  # by plan
        # Three numbers of each look: squares of the difference, squares of the dense values, largest difference.
        self._each: deque[Tensor] = deque(maxlen=KEPT)
        self._sum: Tensor | None = None
        self._looks, self._recomputed = 0, 0.0

    def due(self) -> bool:
        """Called once a frame: whether to look at this one."""
        self._frames += 1
        return self._frames % self.every == 0

    def prepare(self, plan: Plan, frames: Sequence[Tensor]) -> View:
        """Which parts of a frame matter for this plan; worked out at its first look."""
        if id(plan) not in self._views:
            self._views[id(plan)] = View(plan, self.dense, frames)
        return self._views[id(plan)]

    def look(self, plan: Plan, frames: Sequence[Tensor], outputs: Sequence[Any]) -> None:
        """frames: of the network's inputs, flat; outputs: what it made of them."""
        view = self.prepare(plan, frames)
        at = self._draw.random(), self._draw.random()
        part = view.part(at, self.tile)
        try:
            found = part.compare(self.dense, frames, outputs)
        except RuntimeError:  # it cannot run on a part of this size
            if part.box is None:
                raise
            part = view.give_up()
            found = part.compare(self.dense, frames, outputs)
        self._each.append(found)
        total = found if self._sum is None else self._sum
        self._sum = (
            torch.cat([(total + found)[:2], torch.maximum(total, found)[2:]]) if self._looks else found
        )
        self._looks += 1
        self._recomputed += part.share

    def observed(self) -> Observed:
        if self._sum is None:
            return Observed(0, 0.0, 0.0, [], 0.0)
        square, reference, maximum = self._sum.tolist()
        each = [relative(*errors[:2]) for errors in torch.stack(list(self._each)).tolist()]
        return Observed(
            self._looks, relative(square, reference), maximum, each, self._recomputed / self._looks
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
