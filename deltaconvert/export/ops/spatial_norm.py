"""Norms of whole channels (ONNX ReduceL2)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.spatial_norm import SpatialNorm


@in_onnx(SpatialNorm)
def spatial_norm(g: Scope, op: SpatialNorm, x: str) -> str:
    """Where it stays dense, x may have other dimensions."""
    return g.ReduceL2(x, list(op.dims) if g.axis == 1 else [1, 2], keepdims=int(op.keepdim))
