"""Two convolutions whose results are added, in one node: neither map is stored by itself.

Made by the pass join_sums of backends/cuda.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Reach


class ConvSum(Operator):
    """first(x) + second(y): a bottleneck's last convolution and the one that its shortcut goes through."""

    def __init__(self, first: Conv2d, second: Conv2d):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.first(x) + self.second(y)
        return result

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        x, y = shapes
        return [*self.first.reaches([x], out_shape), *self.second.reaches([y], out_shape)]

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        x, y = shapes
        return self.first.macs([x], out_shape) + self.second.macs([y], out_shape)

    def gains(self) -> Tensor | None:
        return self.first.gains()

    def extra_repr(self) -> str:
        return ""
