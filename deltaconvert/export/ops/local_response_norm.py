"""Local response normalisation (ONNX LRN)."""

from __future__ import annotations

from functools import reduce

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.local_response_norm import LocalResponseNorm


@in_onnx(LocalResponseNorm)
def local_response_norm(g: Scope, op: LocalResponseNorm, x: str) -> str:
    if op.size % 2 == 0:
        raise TypeError("ONNX puts the odd channel of an even size on the other side")
    if g.axis == 1:
        return g.LRN(x, size=op.size, alpha=op.alpha, beta=op.beta, bias=op.k)
    # A list of pixels may be empty, which the LRN of CUDA refuses (onnxruntime 1.31); it is a sum of neighbours too.
    half, lead = op.size // 2, g.Slice(g.Shape(x), [0], [-1])
    nothing = g.Expand(0.0, g.Concat(lead, g.constant([half]), axis=0))
    squares = g.Concat(nothing, g.Mul(x, x), nothing, axis=-1) if half else g.Mul(x, x)
    ends = [place - 2 * half or 2**31 for place in range(op.size)]
    beside = [g.Slice(squares, [place], [end], [-1]) for place, end in enumerate(ends)]
    total = reduce(g.Add, beside)  # Sum refuses empty lists too
    return g.Div(x, g.Pow(g.Add(g.Mul(total, op.alpha / op.size), float(op.k)), float(op.beta)))
