"""Batch norm in inference: a scale and a shift (ONNX Mul, Add)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.batch_norm import BatchNorm


@in_onnx(BatchNorm)
def batch_norm(g: Scope, op: BatchNorm, x: str) -> str:
    return g.Add(g.Mul(x, g.per_channel(op.scale)), g.per_channel(op.shift))
