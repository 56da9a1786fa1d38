"""Layer norm over the channels of each pixel (ONNX LayerNormalization)."""

from __future__ import annotations

import torch

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.layer_norm import ChannelNorm, LayerNorm


@in_onnx(ChannelNorm)
def channel_norm(g: Scope, op: ChannelNorm, x: str) -> str:
    if g.axis == -1:
        return _norm(g, op, x)
    return g.Transpose(_norm(g, op, g.Transpose(x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])


def _norm(g: Scope, op: ChannelNorm, x: str) -> str:
    # The scale is no option of the ONNX operator, the bias is.
    if op.weight is not None:
        rest = [] if op.bias is None else [g.weight(op.bias)]
        return g.LayerNormalization(x, g.weight(op.weight), *rest, axis=-1, epsilon=op.eps)
    mean = g.ReduceMean(x, [-1])
    away = g.Sub(x, mean)
    variance = g.ReduceMean(g.Mul(away, away), [-1])
    normed = g.Div(away, g.Sqrt(g.Add(variance, op.eps)))
    return normed if op.bias is None else g.Add(normed, g.weight(op.bias))


@in_onnx(LayerNorm)
def layer_norm(g: Scope, op: LayerNorm, x: str) -> str:
    """As networks write it, where it stays dense."""
    weight = torch.ones(op.shape) if op.weight is None else op.weight
    rest = [] if op.bias is None else [g.weight(op.bias)]
    return g.LayerNormalization(x, g.weight(weight), *rest, axis=-len(op.shape), epsilon=op.eps)
