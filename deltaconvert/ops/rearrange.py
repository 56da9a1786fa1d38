"""A map in the layout that a dense node reads: reshapes and transpositions in one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.layout import Atom, Layout
from deltaconvert.ops.base import Operator, Shape


class Rearrange(Operator):
    """N C H W of `size` -> the tensor whose dimensions are made of `dims`: (axis, step, size) of atoms (Layout)."""

    def __init__(self, size: Sequence[int], dims: Sequence[Sequence[Sequence[int]]]):
        super().__init__()
        self.size, self.dims = tuple(size), tuple(tuple(Atom(*atom) for atom in dim) for dim in dims)
        self._layout = Layout(self.size, self.dims)

    def forward(self, x: Tensor) -> Tensor:
        return self._layout.lay(x)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return "it moves values between rows, columns and channels"
