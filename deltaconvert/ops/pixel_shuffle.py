"""Turning channels into pixels and back (ONNX DepthToSpace, SpaceToDepth)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.ops.base import Operator, Shape, constant, pair, spelled
from deltaconvert.reach import Reach, Sources, Window


class PixelShuffle(Operator):
    """N (C * factor * factor) H W -> N C (H * factor) (W * factor): upsampling in super-resolution networks."""

    position_free = False  # which channels a pixel comes from depends on where it is

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.factor)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        rows, cols = (torch.arange(side).view(-1, 1) // self.factor for side in out_shape[2:])
        return [Sources(rows, cols)]


class PixelUnshuffle(Operator):
    """N C (H * factor) (W * factor) -> N (C * factor * factor) H W."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.factor)

    def on_windows(self, windows: Tensor) -> Tensor:
        return F.pixel_unshuffle(windows, self.factor)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        box = pair(self.factor)
        return [Window(box, box, (0, 0), (1, 1), pair(shape[2:]), pair(out_shape[2:]))]


@spelled(F.pixel_shuffle, torch.pixel_shuffle)
def _shuffle(input: Any, upscale_factor: Any) -> tuple[Operator, list[Any]]:
    return PixelShuffle(constant(upscale_factor, "its factor")), [input]


@spelled(F.pixel_unshuffle, torch.pixel_unshuffle)
def _unshuffle(input: Any, downscale_factor: Any) -> tuple[Operator, list[Any]]:
    return PixelUnshuffle(constant(downscale_factor, "its factor")), [input]
