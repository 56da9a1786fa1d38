"""Joining and taking channels (ONNX Concat, Slice, Gather)."""

from __future__ import annotations

import sys

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.channels import ChannelIndex, Channels, ChannelShuffle, Concat
from deltaconvert.ops.places import Bounds


@in_onnx(Concat)
def concat(g: Scope, op: Concat, *xs: str) -> str:
    return g.Concat(*xs, axis=op.dim if g.axis == 1 else -1)


@in_onnx(Channels)
def channels(g: Scope, op: Channels, x: str) -> str:
    return sliced(g, x, (op.start, op.stop, op.step), g.axis)


@in_onnx(ChannelIndex)
def index(g: Scope, op: ChannelIndex, x: str) -> str:
    return g.Gather(x, op.index.long(), axis=g.axis)


@in_onnx(ChannelShuffle)
def shuffle(g: Scope, op: ChannelShuffle, x: str) -> str:
    """(groups, C) -> (C, groups), the number of channels read from the value itself."""
    shape = g.Shape(x)
    if g.axis == -1:
        inner = g.Div(g.Slice(shape, [-1], [sys.maxsize]), [op.groups])
        apart = g.Reshape(x, g.Concat(g.constant([-1, op.groups]), inner, axis=0))
        return g.Reshape(g.Transpose(apart, perm=[0, 2, 1]), shape)
    rest = g.Slice(shape, [2], [4])
    apart = g.Reshape(x, g.Concat(g.Slice(shape, [0], [1]), g.constant([op.groups, -1]), rest, axis=0))
    return g.Reshape(g.Transpose(apart, perm=[0, 2, 1, 3, 4]), shape)


def sliced(g: Scope, x: str, bounds: Bounds, axis: int) -> str:
    """x[start:stop:step] along one axis, as Python slices a list."""
    start, stop, step = bounds[0], bounds[1], bounds[2] or 1
    far = sys.maxsize
    first = (0 if step > 0 else far) if start is None else start
    last = (far if step > 0 else -far) if stop is None else stop
    return g.Slice(x, [first], [last], [axis], [step])
