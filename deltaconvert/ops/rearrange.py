"""A map in the layout that a dense node reads, and back: reshapes and transpositions in one."""

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
        self.layout = Layout(self.size, self.dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.lay(x)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return "it moves values between rows, columns and channels"


class MapOf(Rearrange):
    """The tensor whose dimensions are made of `dims` -> the map N C H W of `size`: what Rearrange undoes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.map_of(x)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return "it lays out a dense result as the map that follows it"
