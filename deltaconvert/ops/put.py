"""x[index] = value, as a value of its own (ONNX ScatterND)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.ops.arithmetic import of_three
from deltaconvert.ops.around import padded_within
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.ops.places import Bounds, bounds_of
from deltaconvert.reach import Pixel, Reach, Sources


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    """x with `value` at x[index]; x itself stays as it is."""
    out = x.clone()
    out[index] = value
    return out


class Put(Operator):
    """N C H W -> N C H W: a slice of the channels, rows and columns is `value`, or the second input, which has its size
    or is stretched to it."""

    position_free = False  # what a pixel reads depends on where it is

    def __init__(self, channels: Bounds, rows: Bounds, cols: Bounds, value: float | None = None):
        super().__init__()
        self.channels, self.rows, self.cols, self.value = tuple(channels), tuple(rows), tuple(cols), value

    def forward(self, x: Tensor, *values: Tensor) -> Tensor:
        index = [slice(None), slice(*self.channels), slice(*self.rows), slice(*self.cols)]
        index = index[: x.dim()]  # where it runs dense, x may have fewer dimensions
        return put(x, tuple(index), values[0] if values else self.value)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        if len(shapes) == 1:
            return [Pixel()]
        tables = []
        for dim, bounds in ((2, self.rows), (3, self.cols)):
            table = torch.full((out_shape[dim],), -1)
            part = table[slice(*bounds)]
            part.copy_(torch.arange(len(part)).clamp(max=shapes[1][dim] - 1))
            tables.append(table.view(-1, 1))
        return [Pixel(), Sources(*tables)]


@spelled(put)
def _put(x: Any, index: Any, value: Any) -> tuple[Operator, list[Any]]:
    if isinstance(index, Node) and isinstance(value, bool | int | float) and _fits(index, x):
        return of_three("masked_fill", index, value, x)  # y[y < 0] = 0
    parts = index if isinstance(index, tuple) else (index,)
    if isinstance(value, bool | int | float):
        channels, rows, cols = bounds_of(x, tuple(map(_slice, parts)))
        return Put(channels, rows, cols, float(value)), [x]
    if not isinstance(value, Node):
        raise StaysDense("what it writes is no map")
    if isinstance(x, Tensor):
        return padded_within(x, parts, value)
    channels, rows, cols = bounds_of(x, index)
    return Put(channels, rows, cols), [x, value]


def _fits(mask: Node, x: Any) -> bool:
    """It holds a truth value for each value of x."""
    shape = isinstance(x, Node) and x.meta.get("shape")
    return bool(shape) and mask.meta.get("dtype") == torch.bool and mask.meta["shape"] == shape


def _slice(part: Any) -> Any:
    """The slice that takes what a number takes."""
    return slice(part, part + 1 or None) if isinstance(part, int) and not isinstance(part, bool) else part


@spelled(torch.slice_scatter, "slice_scatter")
def _slice_scatter(
    input: Any, src: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1
) -> tuple[Operator, list[Any]]:
    part = slice(*(constant(bound, "its slice") for bound in (start, end, step)))
    return _put(input, (*[slice(None)] * constant(dim, "dim"), part), src)
