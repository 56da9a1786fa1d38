"""Transposed convolutions (ONNX ConvTranspose)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.conv_transpose import ConvTranspose2d


@in_onnx(ConvTranspose2d)
def transposed(g: Scope, op: ConvTranspose2d, x: str) -> str:
    return convolution(g, op, x, op.padding, op.output_padding)


def convolution(
    g: Scope, op: ConvTranspose2d, x: str, padding: tuple[int, int], output_padding: tuple[int, int]
) -> str:
    weights = [g.weight(part) for part in (op.weight, op.bias) if part is not None]
    return g.ConvTranspose(
        x,
        *weights,
        kernel_shape=list(op.weight.shape[2:]),
        strides=list(op.stride),
        pads=[*padding, *padding],
        output_padding=list(output_padding),
        dilations=list(op.dilation),
        group=op.groups,
    )
