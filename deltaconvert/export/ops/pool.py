"""Pools (ONNX MaxPool, AveragePool)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.pool import AvgPool2d, MaxPool2d

Pair = tuple[int, int]


@in_onnx(MaxPool2d)
def max_pool(g: Scope, op: MaxPool2d, x: str) -> str:
    return max_of_windows(g, op, x, op.padding)


def max_of_windows(g: Scope, op: MaxPool2d, x: str, padding: Pair) -> str:
    return g.MaxPool(
        x,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*padding, *padding],
        dilations=list(op.dilation),
        ceil_mode=int(op.ceil_mode),
    )


@in_onnx(AvgPool2d)
def average_pool(g: Scope, op: AvgPool2d, x: str) -> str:
    return average_of_windows(g, op, x, op.padding)


def average_of_windows(g: Scope, op: AvgPool2d, x: str, padding: Pair) -> str:
    include = bool(op.count_include_pad or op.divisor_override)
    pooled = g.AveragePool(
        x,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*padding, *padding],
        ceil_mode=int(op.ceil_mode),
        count_include_pad=int(include),
    )
    if op.divisor_override is None:
        return pooled
    return g.Mul(pooled, op.kernel[0] * op.kernel[1] / op.divisor_override)
