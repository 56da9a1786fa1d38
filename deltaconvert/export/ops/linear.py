"""Linear layers (ONNX MatMul)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.export.ops.conv import with_bias
from deltaconvert.ops.linear import Linear, MapLinear


@in_onnx(MapLinear)
def map_linear(g: Scope, op: MapLinear, x: str) -> str:
    """Of a whole map N C H W; rows of pixels never come here."""
    flat = g.Flatten(x, axis=1)
    rows = with_bias(g, g.MatMul(flat, g.Transpose(g.weight(op.weight), perm=[1, 0])), op.bias)
    return g.Unsqueeze(rows, [2, 3])


@in_onnx(Linear)
def linear(g: Scope, op: Linear, x: str) -> str:
    return with_bias(g, g.MatMul(x, g.Transpose(g.weight(op.weight), perm=[1, 0])), op.bias)
