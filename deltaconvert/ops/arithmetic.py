"""Sums, differences, products, quotients of maps, gates, constants, numbers (ONNX Add, Sub, Mul, Div)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, pair, spelled
from deltaconvert.reach import Everything, Pixel, Reach

_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


class Arithmetic(Operator):
    """function(a, b): of two inputs, or of one input and `other`, which comes first where `reverse` says so.

    An input of size 1x1 beside a larger one is a gate: when it changes, its whole map is a candidate.
    """

    elementwise = True
    integers = True

    def __init__(self, function: str, other: Tensor | float | None, reverse: bool):
        super().__init__()
        self.function, self.reverse = function, reverse
        if isinstance(other, Tensor):
            self.keep("other", other)
        else:
            self.other = other
        self._call = _FUNCTIONS[function]

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        right = self.other if b is None else b
        return self._call(right, a) if self.reverse else self._call(a, right)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        out = pair(out_shape[2:])
        return [Pixel() if pair(shape[2:]) == out else Everything(out) for shape in shapes]

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        for shape in shapes:
            if shape[2:] != out_shape[2:] and shape[2:] != (1, 1):
                return f"it stretches a map of {shape[2]}x{shape[3]} to {out_shape[2]}x{out_shape[3]}"
        if isinstance(self.other, Tensor) and self.other.dim() == 4 and self.other.shape[0] != 1:
            return "its constant differs from stream to stream"
        return None

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        """The constant is the same at every pixel."""
        return not isinstance(self.other, Tensor) or self.other.dim() == 0 or self.other.shape[-2:] == (1, 1)


def _binary(function: str, a: Any, b: Any, reverse: bool = False) -> tuple[Operator, list[Any]]:
    if isinstance(a, Node) and isinstance(b, Node):
        return Arithmetic(function, None, reverse), [a, b]
    if isinstance(a, Node):
        return Arithmetic(function, _other(b, function), reverse), [a]
    if isinstance(b, Node):
        return Arithmetic(function, _other(a, function), not reverse), [b]
    raise StaysDense("it reads no map")


def _other(value: Any, function: str) -> Tensor | float:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise StaysDense(f"{function} with {type(value).__name__}")
    if isinstance(value, Tensor) and value.dim() == 0:
        return float(value)
    if isinstance(value, Tensor) and value.dim() < 3:
        raise StaysDense("its constant runs along the width")
    return value


def _spell(function: str, *targets: Any, reverse: bool = False) -> None:
    @spelled(*targets)
    def _function(a: Any, b: Any = None, *, other: Any = None, alpha: Any = 1) -> tuple[Operator, list[Any]]:
        b = other if b is None else b
        if constant(alpha, "alpha") != 1:
            raise StaysDense("alpha is not 1")
        return _binary(function, a, b, reverse)


_spell("add", operator.add, operator.iadd, torch.add, "add")
_spell("sub", operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "subtract")
_spell("mul", operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "multiply")
_spell("pow", operator.pow, torch.pow, "pow")
_spell("maximum", torch.maximum, "maximum")
_spell("minimum", torch.minimum, "minimum")
_spell("sub", torch.rsub, reverse=True)


@spelled(torch.max, "max")
def _max(input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None) -> Any:
    return _extreme("maximum", input, dim if other is None else other)


@spelled(torch.min, "min")
def _min(input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None) -> Any:
    return _extreme("minimum", input, dim if other is None else other)


def _extreme(function: str, a: Any, b: Any) -> tuple[Operator, list[Any]]:
    """torch.max of two maps; of one it is a reduction, which open_tuples opens where it can."""
    if not isinstance(b, Node | Tensor):
        raise StaysDense("it is no maximum or minimum of two maps")
    return _binary(function, a, b)


@spelled(
    operator.truediv,
    operator.itruediv,
    torch.div,
    torch.divide,
    torch.true_divide,
    "div",
    "divide",
    "true_divide",
)
def _div(
    a: Any, b: Any = None, *, other: Any = None, rounding_mode: Any = None
) -> tuple[Operator, list[Any]]:
    if rounding_mode is not None:
        raise StaysDense(f"rounding_mode={rounding_mode!r}")
    return _binary("div", a, other if b is None else b)
