"""Masks in ONNX: float (N, 1, H, W) of zeros and ones, because MaxPool spreads them; and the lists made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.backends.reference import Amount
from deltaconvert.export.graph import Scope
from deltaconvert.ops.base import Shape
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window, seen_by


def spread(g: Scope, reach: Reach, mask: str, out: Shape) -> str:
    """The output pixels that can have changed, as reach.spread finds them."""
    reach = seen_by(reach)
    if isinstance(reach, Pixel):
        return mask
    if isinstance(reach, Everything):
        return g.Expand(g.ReduceMax(mask, [1, 2, 3]), [out[0], 1, *reach.size])
    if isinstance(reach, Window):
        found = _scattered(g, reach, mask) if reach.transposed else _pooled(g, reach, mask)
    else:
        assert isinstance(reach, Sources)
        found = _looked_up(g, reach, mask)
    if reach.orphans is None:
        return found
    # Output pixels that see only padding follow a mask of ones.
    return g.Max(found, g.Mul(reach.orphans.float().view(1, 1, *out[2:]), g.ReduceMin(mask, [1, 2, 3])))


def _pooled(g: Scope, reach: Window, mask: str) -> str:
    for axis in (0, 1):  # a column of taps after a row of taps: kh + kw comparisons and not kh * kw
        kernel, stride, dilation = reach.kernel[axis], reach.stride[axis], reach.dilation[axis]
        before, size, out = reach.padding[axis], reach.in_size[axis], reach.out_size[axis]
        after = (out - 1) * stride + dilation * (kernel - 1) + 1 - size - before
        if before or after > 0:
            mask = g.Pad(mask, [before, max(after, 0)], 0.0, [2 + axis])
        if kernel > 1 or stride > 1:
            along = [[n, 1] if axis == 0 else [1, n] for n in (kernel, stride, dilation)]
            mask = g.MaxPool(mask, kernel_shape=along[0], strides=along[1], dilations=along[2])
    return mask


def _scattered(g: Scope, reach: Window, mask: str) -> str:
    ends, more = [], []
    for axis in (0, 1):
        span = reach.dilation[axis] * (reach.kernel[axis] - 1) + 1
        end = (
            (reach.in_size[axis] - 1) * reach.stride[axis] + span - reach.padding[axis] - reach.out_size[axis]
        )
        ends.append(max(end, 0))
        more.append(max(-end, 0))
    written = g.ConvTranspose(
        mask,
        torch.ones(1, 1, *reach.kernel),
        strides=list(reach.stride),
        pads=[*reach.padding, *ends],
        dilations=list(reach.dilation),
        output_padding=more,
    )
    return g.Min(written, 1.0)


def _looked_up(g: Scope, reach: Sources, mask: str) -> str:
    for axis, table in ((2, reach.rows), (3, reach.cols)):
        if reach.orphans is not None:
            mask = g.Pad(mask, [0, 1], 0.0, [axis])  # a line of nothing, which is where -1 leads
        if table.shape[1] == 1:
            mask = g.Gather(mask, table.view(-1), axis=axis)
        else:
            mask = g.ReduceMax(g.Gather(mask, table, axis=axis), [axis + 1], keepdims=0)
    return mask


def pixels(g: Scope, mask: str, size: Shape) -> str:
    """int64 (n, 3): stream, row and column of each pixel of a mask."""
    return g.Transpose(g.NonZero(g.Reshape(mask, [size[0], size[2], size[3]])), perm=[1, 0])


def corners(g: Scope, mask: str, size: Shape, tile: tuple[int, int]) -> str:
    """int64 (n, 3): stream, row and column of the first pixel of each tile that holds a pixel of the mask."""
    n, _, height, width = size
    rest = [-side % edge for side, edge in zip((height, width), tile, strict=True)]
    if any(rest):
        mask = g.Pad(mask, [0, 0, *rest], 0.0, [2, 3])
    touched = g.MaxPool(mask, kernel_shape=list(tile), strides=list(tile))
    counts = [(side + more) // edge for side, more, edge in zip((height, width), rest, tile, strict=True)]
    found = g.Transpose(g.NonZero(g.Reshape(touched, [n, *counts])), perm=[1, 0])
    starts = g.Mul(found, [1, *tile])
    return g.Min(starts, [n, height - tile[0], width - tile[1]])


def changed(g: Scope, frame: str, stored: str, every: str, threshold: Amount, size: Shape) -> str:
    """The mask of a frame N C H W against the map N H W C that is stored."""
    stored = g.Transpose(stored, perm=[0, 3, 1, 2])
    exact = not isinstance(threshold, Tensor) and threshold == 0
    same = g.Equal(frame, stored) if exact else within(g, frame, stored, threshold, 1)
    if size[1] > 4:
        moved = g.ReduceMax(g.Cast(g.Not(same), to=1), [1])
        return g.Max(moved, g.Reshape(g.Cast(every, to=1), [-1, 1, 1, 1]))
    whole, *rest = [same] if size[1] == 1 else g.Split(same, axis=1, num_outputs=size[1], outputs=size[1])
    for channel in rest:  # faster than a reduction over three values
        whole = g.And(whole, channel)
    return g.Cast(g.Or(g.Not(whole), g.Reshape(every, [-1, 1, 1, 1])), to=1)


def within(g: Scope, new: str, old: str, threshold: Amount, axis: int) -> str:
    """bool, for each value: it moved by no more than the threshold; a NaN never does so. axis: of the channels."""
    if isinstance(threshold, Tensor):
        return g.LessOrEqual(g.Abs(g.Sub(new, old)), threshold.view(-1, 1, 1) if axis == 1 else threshold)
    return g.LessOrEqual(g.Abs(g.Sub(new, old)), float(threshold))


def share(g: Scope, mask: str, size: Shape, block: int) -> str:
    """The share of blocks of a frame in which a pixel changed."""
    edges = [min(block, side) for side in size[2:]]
    rest = [-side % edge for side, edge in zip(size[2:], edges, strict=True)]
    if any(rest):
        mask = g.Pad(mask, [0, 0, *rest], 0.0, [2, 3])
    return g.ReduceMean(g.MaxPool(mask, kernel_shape=edges, strides=edges), keepdims=0)
