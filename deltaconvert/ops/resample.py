"""Operators whose output pixels read a box of input pixels that depends on their place: interpolation and adaptive
pooling (ONNX Resize, GlobalAveragePool)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, pair, spelled
from deltaconvert.ops.over_channels import OverChannels, reduce_channels
from deltaconvert.ops.places import shape_of
from deltaconvert.reach import Everything, Reach, Sources


class Interpolate(Operator):
    """N C H W -> N C H' W' by F.interpolate: nearest, nearest-exact, bilinear, bicubic, area.

    Either `size` (H', W') or `scale` (height, width) is set, one number for all axes or one each, as torch reads them.
    """

    position_free = False
    copies = True

    def __init__(
        self,
        size: int | tuple[int, ...] | None,
        scale: float | tuple[float, ...] | None,
        mode: str,
        align_corners: bool | None,
        recompute_scale_factor: bool | None,
        antialias: bool,
    ):
        super().__init__()
        self.size, self.scale = size, scale
        self.mode, self.align_corners = mode, align_corners
        self.recompute_scale_factor, self.antialias = recompute_scale_factor, antialias

    def forward(self, x: Tensor) -> Tensor:
        return self._resize(x, self.size, self.scale)

    def _resize(self, x: Tensor, size: Any, scale: Any) -> Tensor:
        if self.antialias:  # torch 2.13 misreads channels_last maps to or from a width of one
            x = x.contiguous()
        return F.interpolate(
            x, size, scale, self.mode, self.align_corners, self.recompute_scale_factor, self.antialias
        )

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        return [Sources(*(sources_of(self._along(axis), shape[2 + axis]) for axis in (0, 1)))]

    def weights(self, reach: Sources, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What each source in the tables of `reach` counts for: of rows (H', taps), of columns (W', taps)."""
        found = []
        for axis, table in enumerate((reach.rows, reach.cols)):
            probe = _lines(shape[2 + axis], min(2, shape[3 - axis]), dtype)
            weights = self._along(axis)(probe)[:, 0, :, 0].t().gather(1, table)
            weights[:, 1:][table[:, 1:] == table[:, :1]] = 0  # it was counted already
            found.append(weights)
        return found[0], found[1]

    def _along(self, axis: int) -> Callable[[Tensor], Tensor]:
        """The height (axis 0) or width (1) alone, for maps that have it in place of their height."""
        size, scale = _along(self.size, axis), _along(self.scale, axis)
        return lambda x: self._resize(
            x, None if size is None else (size, x.shape[3]), None if scale is None else (scale, 1.0)
        )


class AdaptivePool2d(Operator):
    """N C H W -> N C H' W' by the average or the maximum of boxes that cover the map; size None keeps that axis."""

    position_free = False
    copies = True

    def __init__(self, kind: str, size: tuple[int | None, int | None]):
        super().__init__()
        self.kind, self.size = kind, size

    def forward(self, x: Tensor) -> Tensor:
        return self._pool(x, self.size)

    def _pool(self, x: Tensor, size: Any) -> Tensor:
        return F.adaptive_avg_pool2d(x, size) if self.kind == "avg" else F.adaptive_max_pool2d(x, size)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        if out_shape[2:] == (1, 1):
            return [Everything((1, 1))]
        rows = sources_of(lambda x: self._pool(x, (out_shape[2], None)), shape[2])
        columns = sources_of(lambda x: self._pool(x, (out_shape[3], None)), shape[3])
        return [Sources(rows, columns)]


# reduction, as OverChannels names it -> (the pool that it is on maps, what it calls, what to call it)
_REDUCTIONS: dict[str, tuple[str, Callable[..., Tensor], str]] = {
    "mean": ("avg", torch.mean, "mean"),
    "amax": ("max", torch.amax, "maximum"),
}


class OverPlane(AdaptivePool2d):
    """N C H W -> N C 1 1, N C H 1 or N C 1 W: a reduction over `dims`, height and width or one of them; as an island
    it means what torch means."""

    def __init__(self, reduction: str, dims: tuple[int, ...], keepdim: bool):
        kind, call, what = _REDUCTIONS[reduction]
        height, width = ({2 + axis, axis - 2} & set(dims) for axis in (0, 1))
        super().__init__(kind, (1 if height else None, 1 if width else None))
        self.reduction, self.dims, self.keepdim = reduction, tuple(dims), keepdim
        self._call, self._what = call, what

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self.dims, self.keepdim)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        rank = len(shapes[0])
        own = {dim % rank for dim in self.dims} <= {2, 3} and rank == 4
        return None if own else f"it is not a {self._what} over height and width"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        if len(self.dims) == 1 and self.keepdim:
            found = OverChannels(self.reduction, self.dims[0], {}).on_maps(layouts)
            if found is not None:
                return found
        pooled = layout.pooled([dim % len(layout.dims) for dim in self.dims], self.keepdim)
        if pooled is None:
            return None
        axes, left = pooled
        return type(self)(**{**self.settings(), "dims": axes, "keepdim": True}), left


class SpatialMean(OverPlane):
    """N C H W -> N C 1 1, N C H 1 or N C 1 W: torch.mean over `dims`, height and width or one of them."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool = True):
        super().__init__("mean", dims, keepdim)


class SpatialMax(OverPlane):
    """N C H W -> N C 1 1, N C H 1 or N C 1 W: torch.amax over `dims`, height and width or one of them."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool = True):
        super().__init__("amax", dims, keepdim)


def sources_of(resample: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """int64 (H', taps): the input rows that each output row of `resample` reads, asked of the operator itself.

    A map with ones in row i alone lights up the output rows that read row i. Asking in both precisions keeps the
    table right where rounding moves a source coordinate over a pixel's edge; asking maps one and two pixels wide,
    because torch (2.13, bicubic, antialias, one channel) reads other rows where the map is one pixel wide.
    """
    reads: Tensor | None = None
    for dtype in (torch.float32, torch.float64):
        for width in (1, 2):
            lit = resample(_lines(size, width, dtype))[:, 0, :, 0].ne(0).t()
            reads = lit if reads is None else reads | lit
    assert reads is not None
    taps = int(reads.sum(1).max())
    table = reads.to(torch.int8).topk(taps, dim=1)
    # Rows with fewer sources repeat their first one.
    return torch.where(table.values.bool(), table.indices, table.indices[:, :1]).contiguous()


def _lines(size: int, width: int, dtype: torch.dtype) -> Tensor:
    """(size, 1, size, width): of map i row i holds ones."""
    return torch.eye(size, dtype=dtype, device="cpu").view(size, 1, size, 1).repeat(1, 1, 1, width)


def _along(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, tuple) else value


def _numbers(value: Any, kind: type, what: str) -> Any:
    """A number for all axes, or a tuple with one for each: how many axes there are is known at the call only."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return tuple(kind(constant(part, what)) for part in value)
    return kind(constant(value, what))


@spelled(F.interpolate)
def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> tuple[Operator, list[Any]]:
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        raise StaysDense(f"mode={mode!r}")
    size, scale = _numbers(size, int, "its size"), _numbers(scale_factor, float, "its scale")
    return Interpolate(size, scale, mode, align_corners, recompute_scale_factor, antialias), [input]


@spelled(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _upsample(m: nn.Upsample, input: Any) -> tuple[Operator, list[Any]]:
    return _interpolate(input, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor)


def _adaptive_size(value: Any) -> tuple[int | None, int | None]:
    if isinstance(value, list | tuple):
        parts = [None if v is None else int(constant(v, "its size")) for v in value]
        return (parts[0], parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    return (None, None) if value is None else pair(constant(value, "its size"))


@spelled(F.adaptive_avg_pool2d)
def _adaptive_avg(input: Any, output_size: Any) -> tuple[Operator, list[Any]]:
    return AdaptivePool2d("avg", _adaptive_size(output_size)), [input]


@spelled(F.adaptive_max_pool2d)
def _adaptive_max(input: Any, output_size: Any, return_indices: bool = False) -> tuple[Operator, list[Any]]:
    if return_indices:
        raise StaysDense("it returns indices")
    return AdaptivePool2d("max", _adaptive_size(output_size)), [input]


@spelled(nn.AdaptiveAvgPool2d)
def _adaptive_avg_module(m: nn.AdaptiveAvgPool2d, input: Any) -> tuple[Operator, list[Any]]:
    return _adaptive_avg(input, m.output_size)


@spelled(nn.AdaptiveMaxPool2d)
def _adaptive_max_module(m: nn.AdaptiveMaxPool2d, input: Any) -> tuple[Operator, list[Any]]:
    return _adaptive_max(input, m.output_size, m.return_indices)


@spelled(torch.mean, "mean")
def _mean(
    input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
) -> tuple[Operator, list[Any]]:
    if dim in _CHANNELS:
        return reduce_channels("mean", input, dim, keepdim, dtype=dtype)
    if dim is None or dtype is not None:
        raise StaysDense("it is not a mean over height and width")
    return _over_map(SpatialMean, input, dim, keepdim)


@spelled(torch.amax, "amax")
def _amax(
    input: Any, dim: Any = None, keepdim: Any = False, *, axis: Any = None
) -> tuple[Operator, list[Any]]:
    dim = axis if dim is None else dim
    if dim is None or dim in _CHANNELS:
        return reduce_channels("amax", input, dim, keepdim)
    return _over_map(SpatialMax, input, dim, keepdim)


@spelled(torch.sum, "sum")
def _sum(
    input: Any, dim: Any = None, keepdim: Any = False, *, axis: Any = None, dtype: Any = None
) -> tuple[Operator, list[Any]]:
    """Over height and width it is the mean, times the number of pixels."""
    dim = axis if dim is None else dim
    if dim is None or dim in _CHANNELS or dtype is not None:
        return reduce_channels("sum", input, dim, keepdim, dtype=dtype)
    shape = shape_of(input)
    dims = {each % len(shape) for each in (dim if isinstance(dim, list | tuple) else [dim])}
    if len(shape) != 4 or not dims <= {2, 3}:
        return reduce_channels("sum", input, dim, keepdim)
    if not input.meta["dtype"].is_floating_point:
        raise StaysDense("it adds up integers")
    count = math.prod(shape[each] for each in dims)
    return Arithmetic("mul", float(count), False), [_over_map(SpatialMean, input, dim, keepdim)]


_CHANNELS = (1, -3, [1], [-3], (1,), (-3,))


def _over_map(
    kind: type[SpatialMean] | type[SpatialMax], input: Any, dim: Any, keepdim: Any
) -> tuple[Operator, list[Any]]:
    dims = [int(constant(each, "dim")) for each in (dim if isinstance(dim, list | tuple) else [dim])]
    return kind(tuple(dims), bool(constant(keepdim, "keepdim"))), [input]
