"""Pools (ONNX MaxPool, AveragePool)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.pool import AvgPool2d, MaxPool2d

Pair = tuple[int, int]


@in_onnx(MaxPool2d)
def max_pool(g: Scope, op: MaxPool2d, x: str) -> str:
    x, behind = _without_extra_windows(g, op, x, op.dilation)
    return g.MaxPool(
        x,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*op.padding, *behind],
        dilations=list(op.dilation),
        ceil_mode=int(op.ceil_mode),
    )


@in_onnx(AvgPool2d)
def average_pool(g: Scope, op: AvgPool2d, x: str) -> str:
    x, behind = _without_extra_windows(g, op, x, (1, 1))
    return average_of_windows(g, op, x, op.padding, behind)


def average_of_windows(g: Scope, op: AvgPool2d, x: str, before: Pair, behind: Pair) -> str:
    """before, behind: the padding."""
    include = bool(op.count_include_pad or op.divisor_override)
    pooled = g.AveragePool(
        x,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*before, *behind],
        ceil_mode=int(op.ceil_mode),
        count_include_pad=int(include),
    )
    if op.divisor_override is None:
        return pooled
    return g.Mul(pooled, op.kernel[0] * op.kernel[1] / op.divisor_override)


def _without_extra_windows(g: Scope, op: MaxPool2d | AvgPool2d, x: str, dilation: Pair) -> tuple[str, Pair]:
    """The map, and the padding behind it: with ceil_mode torch computes no window that begins in that padding, ONNX
    does. There both end where torch's last window does."""
    behind = list(op.padding)
    for axis in (0, 1) if op.ceil_mode else ():
        size, stride, before = g.shape[2 + axis], op.stride[axis], op.padding[axis]
        extent = (op.kernel[axis] - 1) * dilation[axis] + 1
        extra = -(-(size + 2 * before - extent) // stride)  # the last window's number
        if extra * stride < size + before:
            continue
        left = (extra - 1) * stride + extent - size - before  # padding that the windows before it read
        behind[axis] = max(left, 0)
        if left < 0:
            x = g.Slice(x, [0], [size + left], [2 + axis])
    return x, (behind[0], behind[1])
