"""Arithmetic, comparisons and choices (ONNX Add, Sub, Mul, Div, Pow, Where, ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.arithmetic import Arithmetic, OfThree

_PLAIN = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
    "eq": "Equal",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
}
_TWO: dict[str, Callable[[Scope, str, str], str]] = {
    "floor_divide": lambda g, a, b: g.Floor(g.Div(a, b)),
    "trunc_divide": lambda g, a, b: _truncated(g, g.Div(a, b)),
    "remainder": lambda g, a, b: g.Sub(a, g.Mul(g.Floor(g.Div(a, b)), b)),
    "fmod": lambda g, a, b: g.Mod(a, b, fmod=1),
    "ne": lambda g, a, b: g.Not(g.Equal(a, b)),
}
_THREE: dict[str, Callable[[Scope, str, str, str], str]] = {
    "where": lambda g, a, b, c: g.Where(a, b, c),
    "masked_fill": lambda g, a, b, c: g.Where(a, b, c),
    "lerp": lambda g, a, b, weight: g.Add(a, g.Mul(weight, g.Sub(b, a))),
    "add_scaled": lambda g, a, b, alpha: g.Add(a, g.Mul(b, alpha)),
    "addcmul": lambda g, a, b, c: g.Add(a, g.Mul(b, c)),
    "addcdiv": lambda g, a, b, c: g.Add(a, g.Div(b, c)),
    "clamp": lambda g, a, low, high: g.Min(g.Max(a, low), high),
}


def _truncated(g: Scope, x: str) -> str:
    return g.Mul(g.Sign(x), g.Floor(g.Abs(x)))


@in_onnx(Arithmetic)
def arithmetic(g: Scope, op: Arithmetic, *xs: str) -> str:
    a, b = xs if len(xs) == 2 else (xs[0], _operand(g, op.other))
    if op.reverse:
        a, b = b, a
    if op.function in _TWO:
        return _TWO[op.function](g, a, b)
    return g.call(_PLAIN[op.function], a, b)


@in_onnx(OfThree)
def of_three(g: Scope, op: OfThree, *xs: str) -> str:
    given = iter(xs)
    parts = [next(given) if part is None else _operand(g, part) for part in (op.first, op.second, op.third)]
    return _THREE[op.function](g, *parts)


def _operand(g: Scope, value: Any) -> str:
    """A constant as it broadcasts to maps here."""
    if not isinstance(value, Tensor):
        return g.constant(float(value))
    if g.axis == -1 and value.dim() > 2:
        value = value.movedim(-3, -1)
    while g.axis == -1 and value.dim() > 1:
        value = value[0]  # of pixels: a constant that is the same at every one
    return g.weight(value)
