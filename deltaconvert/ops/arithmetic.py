"""Arithmetic, comparisons and choices of maps, gates, constants, numbers (ONNX Add, Sub, Mul, Div, Pow, Where, ...)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.reach import Reach, stretched

Spelled = tuple[Operator, list[Any]]


def _add_scaled(a: Any, b: Any, alpha: float) -> Tensor:
    """torch.add(a, b, alpha=alpha), whose type goes by a and b alone: truth values times 2 are integers."""
    return (a + b * alpha).to(torch.result_type(a, b))


def _masked_fill(mask: Tensor, value: Any, x: Tensor) -> Tensor:
    """Where, in the type of x whatever the value is."""
    return torch.where(mask, value, x).to(x.dtype)


# name -> function of two maps, or of a map and a constant. The names are also what a saved graph holds.
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floor_divide": operator.floordiv,
    "trunc_divide": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": operator.mod,
    "fmod": torch.fmod,
    "pow": operator.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}
# The same of three. Sums of products round after each step, as torch's own of a single value do not always.
_THREE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "where": torch.where,
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "masked_fill": _masked_fill,
    "add_scaled": _add_scaled,
    "addcmul": lambda a, b, c: a + b * c,
    "addcdiv": lambda a, b, c: a + b / c,
    "clamp": torch.clamp,
}


class Elementwise(Operator):
    """A function of several values at a time, its inputs stretched to one size as torch broadcasts them.

    An input of size 1x1 beside a larger one is a gate: when it changes, its whole map is a candidate. One of size Hx1
    or 1xW makes candidates of rows or columns.
    """

    elementwise = True
    integers = True
    call: Callable[..., Tensor]

    def operands(self, *inputs: Tensor) -> Sequence[Any]:
        """What `call` takes: the inputs and the constants."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*self.operands(*inputs))

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [stretched(shape, out_shape) for shape in shapes]

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        if any(part.dim() == 4 and part.shape[0] != 1 for part in self._constants()):
            return "its constant differs from stream to stream"
        return None

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        layout = max(layouts, key=lambda each: math.prod(each.size))
        if not all(each.broadcasts_to(layout) for each in layouts):
            return None
        settings, constants = self.settings(), {}
        for name, value in settings.items():
            if isinstance(value, Tensor):
                constants[name] = layout.spread_out(value)
        lost = any(value is None for value in constants.values())
        return None if lost else (type(self)(**{**settings, **constants}), layout)

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        """The constants are the same at every pixel."""
        return all(length == 1 for part in self._constants() for length in part.shape[-2:])

    def _constants(self) -> list[Tensor]:
        return [value for value in self.settings().values() if isinstance(value, Tensor)]

    def _hold(self, name: str, value: Tensor | float | None) -> None:
        if isinstance(value, Tensor):
            self.keep(name, value)
        else:
            setattr(self, name, value)


class Arithmetic(Elementwise):
    """function(a, b): of two inputs, or of one input and `other`, which comes first where `reverse` says so."""

    def __init__(self, function: str, other: Tensor | float | None, reverse: bool):
        super().__init__()
        self.function, self.reverse = function, reverse
        self._hold("other", other)
        self.call = _TWO[function]

    def operands(self, *inputs: Tensor) -> Sequence[Any]:
        a, b = inputs if len(inputs) == 2 else (inputs[0], self.other)
        return (b, a) if self.reverse else (a, b)


class OfThree(Elementwise):
    """function(first, second, third): each a constant, or None for the next input."""

    def __init__(
        self,
        function: str,
        first: Tensor | float | None,
        second: Tensor | float | None,
        third: Tensor | float | None,
    ):
        super().__init__()
        self.function = function
        for name, value in (("first", first), ("second", second), ("third", third)):
            self._hold(name, value)
        self.call = _THREE[function]

    def operands(self, *inputs: Tensor) -> Sequence[Any]:
        given = iter(inputs)
        return [next(given) if part is None else part for part in (self.first, self.second, self.third)]


def binary(function: str, a: Any, b: Any, reverse: bool = False) -> Spelled:
    if isinstance(a, Node) and isinstance(b, Node):
        return Arithmetic(function, None, reverse), [a, b]
    if isinstance(a, Node):
        return Arithmetic(function, _other(b, function, [a]), reverse), [a]
    if isinstance(b, Node):
        return Arithmetic(function, _other(a, function, [b]), not reverse), [b]
    raise StaysDense("it reads no map")


def of_three(function: str, *values: Any) -> Spelled:
    maps = [value for value in values if isinstance(value, Node)]
    parts = [None if isinstance(value, Node) else _other(value, function, maps) for value in values]
    return OfThree(function, *parts), maps


def _other(value: Any, function: str, maps: Sequence[Node]) -> Tensor | float:
    if not isinstance(value, int | float | Tensor):
        raise StaysDense(f"{function} with {type(value).__name__}")
    streams = {shape[0] for shape in (node.meta.get("shape", ()) for node in maps) if len(shape) == 4}
    if isinstance(value, Tensor) and value.dim() == 4 and streams == {len(value)}:
        one = value[:1]  # torch.zeros(x.shape[0], 4, 1, 1) is the same for all streams
        return one if torch.equal(value, one.expand_as(value)) else value
    return value


def _spell(function: str, *targets: Any, reverse: bool = False) -> None:
    @spelled(*targets)
    def _function(a: Any, b: Any = None, *, other: Any = None, exponent: Any = None) -> Spelled:
        given = [value for value in (b, other, exponent) if value is not None]
        return binary(function, a, given[0] if given else None, reverse)


_spell("mul", operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "multiply")
_spell("pow", operator.pow, operator.ipow, torch.pow, "pow")
_spell("floor_divide", operator.floordiv, operator.ifloordiv, torch.floor_divide, "floor_divide")
_spell("remainder", operator.mod, operator.imod, torch.remainder, "remainder")
_spell("fmod", torch.fmod, "fmod")
_spell("maximum", torch.maximum, "maximum")
_spell("minimum", torch.minimum, "minimum")
_spell("gt", operator.gt, torch.gt, torch.greater, "gt", "greater")
_spell("lt", operator.lt, torch.lt, torch.less, "lt", "less")
_spell("ge", operator.ge, torch.ge, torch.greater_equal, "ge", "greater_equal")
_spell("le", operator.le, torch.le, torch.less_equal, "le", "less_equal")
_spell("eq", operator.eq, torch.eq, "eq")
_spell("ne", operator.ne, torch.ne, torch.not_equal, "ne", "not_equal")
_spell("bitwise_and", operator.and_, operator.iand, torch.bitwise_and, "bitwise_and")
_spell("bitwise_or", operator.or_, operator.ior, torch.bitwise_or, "bitwise_or")
_spell("bitwise_xor", operator.xor, operator.ixor, torch.bitwise_xor, "bitwise_xor")
_spell("logical_and", torch.logical_and, "logical_and")
_spell("logical_or", torch.logical_or, "logical_or")
_spell("logical_xor", torch.logical_xor, "logical_xor")


def _spell_scaled(function: str, *targets: Any, reverse: bool = False) -> None:
    @spelled(*targets)
    def _function(a: Any, b: Any = None, *, other: Any = None, alpha: Any = 1) -> Spelled:
        b = other if b is None else b
        if constant(alpha, "alpha") == 1:
            return binary(function, a, b, reverse)
        return of_three(
            "add_scaled", *((b, a) if reverse else (a, b)), alpha if function == "add" else -alpha
        )


_spell_scaled("add", operator.add, operator.iadd, torch.add, "add")
_spell_scaled("sub", operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "subtract")
_spell_scaled("sub", torch.rsub, reverse=True)


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
def _div(a: Any, b: Any = None, *, other: Any = None, rounding_mode: Any = None) -> Spelled:
    functions = {None: "div", "floor": "floor_divide", "trunc": "trunc_divide"}
    return binary(functions[rounding_mode], a, other if b is None else b)


@spelled(torch.max, "max")
def _max(input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None) -> Spelled:
    return _extreme("maximum", input, dim if other is None else other)


@spelled(torch.min, "min")
def _min(input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None) -> Spelled:
    return _extreme("minimum", input, dim if other is None else other)


def _extreme(function: str, a: Any, b: Any) -> Spelled:
    """torch.max of two maps; of one it is a reduction, which open_tuples opens where it can."""
    if not isinstance(b, Node | Tensor):
        raise StaysDense("it is no maximum or minimum of two maps")
    return binary(function, a, b)


@spelled(torch.where)
def _where(condition: Any, input: Any = None, other: Any = None) -> Spelled:
    return of_three("where", condition, input, other)


@spelled("where")
def _where_method(input: Any, condition: Any, other: Any) -> Spelled:
    return of_three("where", condition, input, other)


@spelled(torch.masked_fill, "masked_fill")
def _masked_fill_method(input: Any, mask: Any, value: Any) -> Spelled:
    return of_three("masked_fill", mask, value, input)


@spelled(torch.lerp, "lerp")
def _lerp(input: Any, end: Any, weight: Any) -> Spelled:
    return of_three("lerp", input, end, weight)


@spelled(torch.addcmul, "addcmul")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Spelled:
    return _accumulated("addcmul", input, tensor1, tensor2, value)


@spelled(torch.addcdiv, "addcdiv")
def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Spelled:
    return _accumulated("addcdiv", input, tensor1, tensor2, value)


def _accumulated(function: str, a: Any, b: Any, c: Any, value: Any) -> Spelled:
    if constant(value, "value") != 1:
        raise StaysDense(f"value={value}")
    return of_three(function, a, b, c)
