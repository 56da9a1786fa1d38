"""The norm of each whole channel, as global response normalisation takes it (ONNX ReduceL2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, constant
from deltaconvert.ops.group_norm import sums
from deltaconvert.reach import Everything, Reach


class SpatialNorm(Operator):
    """N C H W -> N C 1 1: the Euclidean norm over `dims`, height and width; as an island it means what torch means."""

    position_free = False

    def __init__(self, dims: tuple[int, ...], keepdim: bool = True):
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, 2, self.dims, self.keepdim)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [Everything((1, 1))]

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        own = sorted(dim % len(shapes[0]) for dim in self.dims) == [2, 3]
        return None if own else "it is not a norm over height and width"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        pooled = layout.pooled([dim % len(layout.dims) for dim in self.dims], self.keepdim)
        return (SpatialNorm((2, 3)), pooled[1]) if pooled is not None and pooled[0] == (2, 3) else None

    def of_parts(self, pixels: Tensor, inside: Tensor) -> Tensor:
        return sums((pixels * inside).double() ** 2)

    def combined(self, parts: Tensor, counts: Tensor) -> Tensor:
        return parts.sum(1).sqrt()


def spatial_norm(input: Any, dims: Sequence[Any], keepdim: Any) -> tuple[Operator, list[Any]]:
    places = tuple(int(constant(dim, "its dimension")) for dim in dims)
    return SpatialNorm(places, bool(constant(keepdim, "keepdim"))), [input]
