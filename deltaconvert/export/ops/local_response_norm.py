"""Local response normalisation (ONNX LRN)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.local_response_norm import LocalResponseNorm


@in_onnx(LocalResponseNorm)
def local_response_norm(g: Scope, op: LocalResponseNorm, x: str) -> str:
    if op.size % 2 == 0:
        raise TypeError("ONNX puts the odd channel of an even size on the other side")
    maps = x if g.axis == 1 else g.Unsqueeze(x, [2, 3])
    found = g.LRN(maps, size=op.size, alpha=op.alpha, beta=op.beta, bias=op.k)
    return found if g.axis == 1 else g.Squeeze(found, [2, 3])
