"""A convolution with a window over what another one makes, in one node: the map between is never stored.

Made by the passes join_pairs and join_residuals.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Pixel, Reach, Window


class Paired(Operator):
    """window(first(x)), with a map between that has the size of x and is not stored.

    The first reads single pixels, or both read as many pixels around each as they are padded.
    """

    narrows = False  # the window is of the map between

    def __init__(self, first: Operator, window: Conv2d):
        super().__init__()
        self.first, self.window = first, window

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.window(self.first(x))
        return result

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        between = self._between(shapes)
        (inner,), (outer,) = self.first.reaches(shapes, between), self.window.reaches([between], out_shape)
        if isinstance(inner, Pixel):
            return [outer]
        assert isinstance(inner, Window) and isinstance(outer, Window)
        height, width = (a + b - 1 for a, b in zip(inner.kernel, outer.kernel, strict=True))
        padding = (height // 2, width // 2)
        return [Window((height, width), (1, 1), padding, (1, 1), inner.in_size, outer.out_size)]

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        between = self._between(shapes)
        return self.first.macs(shapes, between) + self.window.macs([between], out_shape)

    def gains(self) -> Tensor | None:
        return self.first.gains()

    def extra_repr(self) -> str:
        return ""

    def _between(self, shapes: Sequence[Shape]) -> Shape:
        ((streams, _, height, width),) = shapes
        return (streams, self.window.weight.shape[1] * self.window.groups, height, width)
