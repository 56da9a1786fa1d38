"""Convolutions (ONNX Conv); of pixels, a product of rows (MatMul)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.conv import Conv2d


@in_onnx(Conv2d)
def conv(g: Scope, op: Conv2d, x: str) -> str:
    if g.axis == 1:
        return convolution(g, op, x, op.padding)
    if op.groups > 1:
        return _grouped(g, op, x)
    outer, inner = op.weight.shape[:2]
    weight = g.Transpose(g.Reshape(g.weight(op.weight), [outer, inner]), perm=[1, 0])
    return with_bias(g, g.MatMul(x, weight), op.bias)


def convolution(g: Scope, op: Conv2d, x: str, padding: tuple[int, int]) -> str:
    weights = [g.weight(part) for part in (op.weight, op.bias) if part is not None]
    return g.Conv(
        x,
        *weights,
        kernel_shape=list(op.weight.shape[2:]),
        strides=list(op.stride),
        pads=[*padding, *padding],
        dilations=list(op.dilation),
        group=op.groups,
    )


def with_bias(g: Scope, rows: str, bias: object) -> str:
    return rows if bias is None else g.Add(rows, g.weight(bias))  # type: ignore[arg-type]


def _grouped(g: Scope, op: Conv2d, x: str) -> str:
    """A product for each group. One of all groups at once fails or crashes where a list is empty (onnxruntime 1.30)."""
    outer, inner = op.weight.shape[:2]
    weights = g.Reshape(g.weight(op.weight), [op.groups, outer // op.groups, inner])
    parts = [
        g.MatMul(part, g.Transpose(g.Gather(weights, group, axis=0), perm=[1, 0]))
        for group, part in enumerate(g.Split(x, axis=-1, num_outputs=op.groups, outputs=op.groups))
    ]
    return with_bias(g, g.Concat(*parts, axis=-1), op.bias)
