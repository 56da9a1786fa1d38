"""A convolution with a window over pixels that a 1x1 convolution makes, in one node: the map between is never stored.

Made by the pass join_expansions, for inverted residuals (MobileNetV2, arXiv 1801.04381, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Reach


class Expanded(Operator):
    """window(pixels(x)): `pixels` makes each pixel from the same one of x, `window` pads what comes out with zeros."""

    def __init__(self, pixels: Operator, window: Conv2d):
        super().__init__()
        self.pixels, self.window = pixels, window

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.window(self.pixels(x))
        return result

    @property
    def channels(self) -> int:
        """Of the map between."""
        return int(self.window.weight.shape[1] * self.window.groups)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return self.window.reaches(shapes, out_shape)

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        (shape,) = shapes
        between = (shape[0], self.channels, *shape[2:])
        return self.pixels.macs(shapes, between) + self.window.macs([between], out_shape)

    def gains(self) -> Tensor | None:
        return self.pixels.gains()

    def extra_repr(self) -> str:
        return ""


def window_of(head: Operator) -> Operator:
    """The operator that has the head's window."""
    return head.window if isinstance(head, Expanded) else head
