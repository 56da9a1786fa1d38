"""Functions of one value at a time (ONNX Relu, Clip, Sigmoid, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deltaconvert.export.graph import TYPES, Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.pointwise import Pointwise, PReLU

_PLAIN = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "selu": "Selu",
    "mish": "Mish",
    "softsign": "Softsign",
    "exp": "Exp",
    "log": "Log",
    "abs": "Abs",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "atan": "Atan",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "isnan": "IsNaN",
    "logical_not": "Not",
}


def _clip(g: Scope, x: str, low: float | None, high: float | None) -> str:
    bounds = ["" if bound is None else g.constant(float(bound)) for bound in (low, high)]
    return g.Clip(x, *bounds)


def _softplus(g: Scope, x: str, beta: float = 1, threshold: float = 20) -> str:
    scaled = g.Mul(x, float(beta))
    return g.Where(g.Greater(scaled, float(threshold)), x, g.Div(g.Softplus(scaled), float(beta)))


def _rounded(g: Scope, x: str, decimals: int = 0) -> str:
    return g.Div(g.Round(g.Mul(x, 10.0**decimals)), 10.0**decimals)


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "relu6": lambda g, x: _clip(g, x, 0, 6),
    "leaky_relu": lambda g, x, negative_slope=0.01: g.LeakyRelu(x, alpha=negative_slope),
    "silu": lambda g, x: g.Mul(x, g.Sigmoid(x)),
    "hardswish": lambda g, x: g.HardSwish(x),
    "hardsigmoid": lambda g, x: g.HardSigmoid(x, alpha=1 / 6, beta=0.5),
    "gelu": lambda g, x, approximate="none": g.Gelu(x, approximate=approximate),
    "elu": lambda g, x, alpha=1.0: g.Elu(x, alpha=alpha),
    "celu": lambda g, x, alpha=1.0: g.Celu(x, alpha=alpha),
    "hardtanh": lambda g, x, min_val=-1.0, max_val=1.0: _clip(g, x, min_val, max_val),
    "softplus": _softplus,
    "logsigmoid": lambda g, x: g.Neg(g.Softplus(g.Neg(x))),
    "hardshrink": lambda g, x, lambd=0.5: g.Shrink(x, lambd=lambd),
    "softshrink": lambda g, x, lambd=0.5: g.Shrink(x, lambd=lambd, bias=lambd),
    "tanhshrink": lambda g, x: g.Sub(x, g.Tanh(x)),
    "threshold": lambda g, x, threshold, value: g.Where(g.Greater(x, float(threshold)), x, float(value)),
    "clamp": lambda g, x, min=None, max=None: _clip(g, x, min, max),
    "rsqrt": lambda g, x: g.Reciprocal(g.Sqrt(x)),
    "square": lambda g, x: g.Mul(x, x),
    "exp2": lambda g, x: g.Pow(2.0, x),
    "log2": lambda g, x: g.Div(g.Log(x), math.log(2)),
    "log10": lambda g, x: g.Div(g.Log(x), math.log(10)),
    "trunc": lambda g, x: g.Mul(g.Sign(x), g.Floor(g.Abs(x))),
    "round": _rounded,
}


@in_onnx(Pointwise)
def pointwise(g: Scope, op: Pointwise, x: str) -> str:
    options: dict[str, Any] = op.options
    if op.function == "cast":
        return g.Cast(x, to=TYPES[options["dtype"]])
    if op.function in _PLAIN and not options:
        return g.call(_PLAIN[op.function], x)
    return _FUNCTIONS[op.function](g, x, **options)


@in_onnx(PReLU)
def prelu(g: Scope, op: PReLU, x: str) -> str:
    return g.PRelu(x, g.weight(op.weight) if op.weight.numel() == 1 else g.per_channel(op.weight))
