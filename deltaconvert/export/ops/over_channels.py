"""Functions of the channels of a pixel (ONNX Softmax, ArgMax, ReduceMax, ...)."""

from __future__ import annotations

from collections.abc import Callable

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.over_channels import OverChannels


def _norm(g: Scope, x: str, axis: int, p: float) -> str:
    if p == 1:
        return g.ReduceL1(x, [axis])
    if p == 2:
        return g.ReduceL2(x, [axis])
    return g.Pow(g.ReduceSum(g.Pow(g.Abs(x), float(p)), [axis]), 1 / p)


def _normalize(g: Scope, x: str, axis: int, p: float = 2.0, eps: float = 1e-12) -> str:
    return g.Div(x, g.Max(_norm(g, x, axis, p), float(eps)))


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "softmax": lambda g, x, axis: g.Softmax(x, axis=axis),
    "log_softmax": lambda g, x, axis: g.LogSoftmax(x, axis=axis),
    "normalize": _normalize,
    "argmax": lambda g, x, axis: g.ArgMax(x, axis=axis),
    "argmin": lambda g, x, axis: g.ArgMin(x, axis=axis),
    "amax": lambda g, x, axis: g.ReduceMax(x, [axis]),
    "amin": lambda g, x, axis: g.ReduceMin(x, [axis]),
    "sum": lambda g, x, axis: g.ReduceSum(x, [axis]),
    "mean": lambda g, x, axis: g.ReduceMean(x, [axis]),
    "vector_norm": lambda g, x, axis, ord=2: _norm(g, x, axis, ord),
}


@in_onnx(OverChannels)
def over_channels(g: Scope, op: OverChannels, x: str) -> str:
    found = _FUNCTIONS[op.function](g, x, g.axis, **op.options)
    # Of an empty list onnxruntime 1.30 keeps all channels.
    return g.Slice(found, [0], [1], [-1]) if op.makes_one and g.axis == -1 else found
