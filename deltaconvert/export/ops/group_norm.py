"""Group and instance norms: their statistics, and what they do to a map (ONNX ReduceMean, Div)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.group_norm import Normalise, Statistics


@in_onnx(Statistics)
def statistics(g: Scope, op: Statistics, x: str) -> str:
    """Of a whole map N C H W."""
    groups = op.groups or 0  # 0 keeps the length: each channel is a group
    flat = g.Reshape(x, [0, groups, -1])
    mean = g.ReduceMean(flat, [2])
    away = g.Sub(flat, mean)
    variance = g.ReduceMean(g.Mul(away, away), [2])
    found = g.Concat(mean, g.Sqrt(g.Add(variance, float(op.eps))), axis=1)
    return g.Unsqueeze(found, [3])


@in_onnx(Normalise)
def normalise(g: Scope, op: Normalise, x: str, statistics: str) -> str:
    """statistics: (N, 2 * groups, 1, 1), or in rows (..., 2 * groups)."""
    mean, deviation = g.Split(statistics, axis=g.axis, num_outputs=2, outputs=2)
    channels = g.Slice(g.Shape(x), [g.axis], [g.axis + 1] if g.axis == 1 else [2**62])
    groups = g.Slice(g.Shape(mean), [g.axis], [g.axis + 1] if g.axis == 1 else [2**62])
    # Each group's value once for each of its channels: index i // (C / groups).
    every = g.Div(g.Range(0, g.Squeeze(channels), 1), g.Div(channels, groups))
    x = g.Div(g.Sub(x, g.Gather(mean, every, axis=g.axis)), g.Gather(deviation, every, axis=g.axis))
    x = x if op.weight is None else g.Mul(x, g.per_channel(op.weight))
    return x if op.bias is None else g.Add(x, g.per_channel(op.bias))
