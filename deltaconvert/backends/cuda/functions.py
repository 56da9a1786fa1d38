"""Functions of one value as CUDA code: those of deltaconvert/ops/pointwise.py that are no activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def literal(value: Any) -> str:
    value = float(value)
    if math.isnan(value):
        return "((number)(0.0 / 0.0))"
    if math.isinf(value):
        return f"((number)({'-' if value < 0 else ''}1.0 / 0.0))"
    return f"((number){value!r})"


def _elu(v: str, alpha: float, scale: float = 1.0, rate: float = 1.0) -> str:
    return f"{literal(scale)} * ({v} > 0 ? {v} : {literal(alpha)} * expm1({v} * {literal(rate)}))"


def _softplus(v: str) -> str:
    return f"({v} > 20 ? {v} : log1p(exp({v})))"


# Comparisons are written so that NaN passes through, as in torch.
RARE: dict[str, Callable[..., str]] = {
    "selu": lambda v: _elu(v, 1.6732632423543772848, 1.0507009873554804934),
    "celu": lambda v, alpha=1.0: _elu(v, alpha, rate=1 / alpha),
    "mish": lambda v: f"{v} * tanh({_softplus(v)})",
    "softsign": lambda v: f"{v} / (1 + fabs({v}))",
    "logsigmoid": lambda v: f"({v} < 0 ? {v} : (number)0) - log1p(exp(-fabs({v})))",
    "hardshrink": lambda v, lambd=0.5: (
        f"{v} >= {literal(-lambd)} && {v} <= {literal(lambd)} ? (number)0 : {v}"
    ),
    "softshrink": lambda v, lambd=0.5: (
        f"{v} > {literal(lambd)} ? {v} - {literal(lambd)} : "
        f"{v} < {literal(-lambd)} ? {v} + {literal(lambd)} : {v} * 0"
    ),
    "tanhshrink": lambda v: f"{v} - tanh({v})",
    "threshold": lambda v, threshold, value: f"{v} <= {literal(threshold)} ? {literal(value)} : {v}",
    "exp2": lambda v: f"exp2({v})",
    "expm1": lambda v: f"expm1({v})",
    "log1p": lambda v: f"log1p({v})",
    "log2": lambda v: f"log2({v})",
    "log10": lambda v: f"log10({v})",
    "sin": lambda v: f"sin({v})",
    "cos": lambda v: f"cos({v})",
    "tan": lambda v: f"tan({v})",
    "atan": lambda v: f"atan({v})",
    "erf": lambda v: f"erf({v})",
    "floor": lambda v: f"floor({v})",
    "ceil": lambda v: f"ceil({v})",
    "trunc": lambda v: f"trunc({v})",
    "sign": lambda v: f"{v} > 0 ? (number)1 : {v} < 0 ? (number)-1 : (number)0",
}
