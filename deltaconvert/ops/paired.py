"""A convolution with a window over what another one makes, in one node: the map between is never stored.

Made by the pass join_pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Reach, Window


class Paired(Operator):
    """window(first(x)): both read as many pixels around each as they are padded, so that their maps have one size."""

    def __init__(self, first: Operator, window: Conv2d):
        super().__init__()
        self.first, self.window = first, window

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.window(self.first(x))
        return result

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        (inner,), (outer,) = (part.reaches([shape], out_shape) for part in (self.first, self.window))
        assert isinstance(inner, Window) and isinstance(outer, Window)
        height, width = (a + b - 1 for a, b in zip(inner.kernel, outer.kernel, strict=True))
        padding = (height // 2, width // 2)
        return [Window((height, width), (1, 1), padding, (1, 1), inner.in_size, outer.out_size)]

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        between = (out_shape[0], self.window.weight.shape[1], *out_shape[2:])
        return self.first.macs(shapes, between) + self.window.macs([between], out_shape)

    def gains(self) -> Tensor | None:
        return self.first.gains()

    def extra_repr(self) -> str:
        return ""
