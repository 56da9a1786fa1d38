"""Pixels in other places: crops, steps over pixels, rolled and mirrored maps (ONNX Slice, Gather)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.reach import Pixel, Reach, Sources

Bounds = tuple[int | None, int | None, int | None]  # start, stop, step of a slice
WHOLE: Bounds = (None, None, None)


class Places(Operator):
    """Each output pixel is a copy of one input pixel or holds the constant `fill`; which one, `along` says."""

    position_free = False
    copies = True

    def along(self, axis: int, places: Tensor) -> Tensor:
        """`places`, int64 (size): 0, 1, ... along the height (axis 0) or width (1), as they lie in the output;
        -1 for the constant."""
        return places

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        tables = [self.along(axis, torch.arange(shape[2 + axis])) for axis in (0, 1)]
        if all(torch.equal(table, torch.arange(shape[2 + axis])) for axis, table in enumerate(tables)):
            return [Pixel()]
        return [Sources(*(table.view(-1, 1) for table in tables))]


class Crop(Places):
    """N C H W -> N C' H' W': a slice of the rows, of the columns and of the channels."""

    def __init__(self, rows: Bounds, cols: Bounds, channels: Bounds):
        super().__init__()
        self.rows, self.cols, self.channels = _three(rows), _three(cols), _three(channels)

    def forward(self, x: Tensor) -> Tensor:
        index = [slice(None), slice(*self.channels), slice(*self.rows), slice(*self.cols)]
        while len(index) > 1 and index[-1] == slice(None):  # where it runs dense, x may have fewer dimensions
            index.pop()
        return x[tuple(index)]

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        """Slices of dimensions that are the channels, rows or columns of the map."""
        layout, found = layouts[0], dict.fromkeys((1, 2, 3), WHOLE)
        for dim, bounds in enumerate((self.channels, self.rows, self.cols), 1):
            if bounds == WHOLE:
                continue
            axis = next((axis for axis in (1, 2, 3) if layout.in_order(layout.dims[dim], axis)), None)
            kept = (
                layout.with_axis(dim, axis, len(range(layout.size[axis])[slice(*bounds)])) if axis else None
            )
            if axis is None or kept is None:
                return None
            layout, found[axis] = kept, bounds
        return Crop(found[2], found[3], found[1]), layout

    def along(self, axis: int, places: Tensor) -> Tensor:
        return places[slice(*(self.rows, self.cols)[axis])]

    def copied(self, rows: Tensor) -> Tensor:
        return rows[:, slice(*self.channels)]


class Roll(Places):
    """N C H W -> N C H W: torch.roll by `shifts` along `dims`, height and width."""

    def __init__(self, shifts: tuple[int, ...], dims: tuple[int, ...]):
        super().__init__()
        self.shifts, self.dims = tuple(shifts), tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, self.dims)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return None if {d % 4 for d in self.dims} <= {2, 3} else "it rolls more than height and width"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        axes = [
            next((axis for axis in (2, 3) if layout.in_order(layout.dims[dim], axis)), None)
            for dim in self.dims
        ]
        return None if None in axes else (Roll(self.shifts, tuple(axes)), layout)  # type: ignore[arg-type]

    def along(self, axis: int, places: Tensor) -> Tensor:
        return places.roll(sum(s for s, d in zip(self.shifts, self.dims, strict=True) if d % 4 == 2 + axis))


class Flip(Places):
    """N C H W -> N C H W: mirrored along `dims`: channels, height, width."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.dims)

    def along(self, axis: int, places: Tensor) -> Tensor:
        return places.flip(0) if self._turns(2 + axis) else places

    def copied(self, rows: Tensor) -> Tensor:
        return rows.flip(1) if self._turns(1) else rows

    def _turns(self, dim: int) -> bool:
        return any(d % 4 == dim for d in self.dims)


def _three(bounds: Sequence[int | None]) -> Bounds:
    """A list, as a file holds them, is a tuple."""
    start, stop, step = bounds
    return start, stop, step


def crop(x: Any, index: Any) -> tuple[Operator, list[Any]]:
    """x[index], where it takes rows, columns and channels by slices."""
    channels, rows, cols = bounds_of(x, index)
    return Crop(rows, cols, channels), [x]


def bounds_of(x: Any, index: Any) -> list[Bounds]:
    """Of x[index]: which channels, rows and columns; StaysDense where it takes others, or by more than slices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        parts = _without_dots(parts, len(shape_of(x)))
    if not all(isinstance(part, slice) for part in parts):
        raise StaysDense("it takes something else than slices")
    if parts[:1] != [slice(None)] or len(parts) > 4:
        raise StaysDense("it takes more than channels, rows and columns")
    return [_bounds(part) for part in (*parts[1:], *[slice(None)] * (4 - len(parts)))]


def flip(x: Any, dims: Any) -> tuple[Operator, list[Any]]:
    """x.flip(dims), where it leaves the streams as they are."""
    dims = _dims(dims)
    if any(d % 4 == 0 for d in dims):
        raise StaysDense("it turns the batch round")
    return Flip(dims), [x]


def _without_dots(parts: list[Any], rank: int) -> list[Any]:
    place = next(i for i, part in enumerate(parts) if part is Ellipsis)
    return [*parts[:place], *[slice(None)] * (rank + 1 - len(parts)), *parts[place + 1 :]]


def shape_of(x: Any) -> Shape:
    """Known once the plan has seen a frame."""
    shape = x.meta.get("shape") if isinstance(x, torch.fx.Node) else None
    if shape is None:
        raise StaysDense("how many dimensions its input has is not known")
    return tuple(shape)


def _bounds(part: slice) -> Bounds:
    start, stop, step = (constant(bound, "its slice") for bound in (part.start, part.stop, part.step))
    return start, stop, step


def _dims(value: Any) -> tuple[int, ...]:
    value = constant(value, "its dimensions")
    return (value,) if isinstance(value, int) else tuple(constant(d, "its dimensions") for d in value)


@spelled(torch.narrow, "narrow")
def _narrow(input: Any, dim: Any, start: Any, length: Any) -> tuple[Operator, list[Any]]:
    dim, start, length = constant(dim, "dim"), constant(start, "its start"), constant(length, "its length")
    shape = shape_of(input)
    first = int(start) % shape[dim] if shape[dim] else 0
    index = [slice(None)] * len(shape)
    index[dim] = slice(first, first + length)
    return crop(input, tuple(index))


@spelled(torch.roll, "roll")
def _roll(input: Any, shifts: Any, dims: Any = None) -> tuple[Operator, list[Any]]:
    dims = () if dims is None else _dims(dims)
    if not dims:
        raise StaysDense("it rolls more than height and width")
    return Roll(_dims(shifts), dims), [input]
