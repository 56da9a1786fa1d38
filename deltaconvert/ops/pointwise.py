"""Functions of one value at a time: activations, clamps, exp and its kin, rounding, casts (ONNX Relu, Clip, Cast)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from deltaconvert.layout import Layout
from deltaconvert.ops.arithmetic import binary, of_three
from deltaconvert.ops.base import Operator, StaysDense, constant, spelled

# name -> (function, names of its settings). The names are also what a saved graph holds.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "relu": (F.relu, ()),
    "relu6": (F.relu6, ()),
    "leaky_relu": (F.leaky_relu, ("negative_slope",)),
    "silu": (F.silu, ()),
    "sigmoid": (torch.sigmoid, ()),
    "hardswish": (F.hardswish, ()),
    "hardsigmoid": (F.hardsigmoid, ()),
    "gelu": (F.gelu, ("approximate",)),
    "tanh": (torch.tanh, ()),
    "elu": (F.elu, ("alpha",)),
    "selu": (F.selu, ()),
    "celu": (F.celu, ("alpha",)),
    "mish": (F.mish, ()),
    "hardtanh": (F.hardtanh, ("min_val", "max_val")),
    "softplus": (F.softplus, ("beta", "threshold")),
    "softsign": (F.softsign, ()),
    "logsigmoid": (F.logsigmoid, ()),
    "hardshrink": (F.hardshrink, ("lambd",)),
    "softshrink": (F.softshrink, ("lambd",)),
    "tanhshrink": (F.tanhshrink, ()),
    "threshold": (F.threshold, ("threshold", "value")),
}
_PLAIN: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "clamp": (torch.clamp, ("min", "max")),
    "exp": (torch.exp, ()),
    "log": (torch.log, ()),
    "abs": (torch.abs, ()),
    "sqrt": (torch.sqrt, ()),
    "rsqrt": (torch.rsqrt, ()),
    "square": (torch.square, ()),
    "neg": (torch.neg, ()),
    "reciprocal": (torch.reciprocal, ()),
    "exp2": (torch.exp2, ()),
    "expm1": (torch.expm1, ()),
    "log1p": (torch.log1p, ()),
    "log2": (torch.log2, ()),
    "log10": (torch.log10, ()),
    "logit": (torch.logit, ("eps",)),
    "sin": (torch.sin, ()),
    "cos": (torch.cos, ()),
    "tan": (torch.tan, ()),
    "atan": (torch.atan, ()),
    "erf": (torch.erf, ()),
    "floor": (torch.floor, ()),
    "ceil": (torch.ceil, ()),
    "round": (torch.round, ("decimals",)),
    "trunc": (torch.trunc, ()),
    "sign": (torch.sign, ()),
    "nan_to_num": (torch.nan_to_num, ("nan", "posinf", "neginf")),
    "isnan": (torch.isnan, ()),
    "logical_not": (torch.logical_not, ()),
    "bitwise_not": (torch.bitwise_not, ()),
}
_CASTS = {
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "double": torch.float64,
    "int": torch.int32,
    "long": torch.int64,
    "bool": torch.bool,
}
_OF_INTEGERS = ("cast", "clamp", "abs", "square", "neg", "sign", "isnan", "logical_not", "bitwise_not")


class Pointwise(Operator):
    """One function of each value, with constant settings; N C H W -> N C H W."""

    elementwise = True

    def __init__(self, function: str, options: dict[str, Any]):
        super().__init__()
        self.function, self.options = function, options
        self._call = _cast if function == "cast" else (_ACTIVATIONS.get(function) or _PLAIN[function])[0]

    @property
    def activation(self) -> bool:  # type: ignore[override]
        return self.function in _ACTIVATIONS

    @property
    def integers(self) -> bool:  # type: ignore[override]
        return self.function in _OF_INTEGERS

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, **self.options)

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        return self, layouts[0]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


class PReLU(Operator):
    """x where x > 0, else weight * x with weight (1) or (C); N C H W -> N C H W (ONNX PRelu)."""

    elementwise = True
    activation = True

    def __init__(self, weight: Tensor):
        super().__init__()
        self.keep("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        own = self.weight.numel() == 1 or (len(layout.dims) > 1 and layout.in_order(layout.dims[1], 1))
        return (self, layout) if own else None


def _make(name: str, options: dict[str, Any], input: Any) -> tuple[Operator, list[Any]]:
    for key, value in options.items():
        if isinstance(constant(value, key), Tensor):
            raise StaysDense(f"{key} is a tensor")
    return Pointwise(name, options), [input]


def _spell(name: str, names: tuple[str, ...], *targets: Any) -> None:
    @spelled(*targets)
    def _function(input: Any, *args: Any, **kwargs: Any) -> tuple[Operator, list[Any]]:
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        options.pop("inplace", None)
        if len(args) > len(names) + 1 or set(options) - set(names):
            raise StaysDense(f"{name} has options that deltaconvert does not know")
        return _make(name, options, input)


def _spell_all() -> None:
    for name, (function, names) in {**_ACTIVATIONS, **_PLAIN}.items():
        if name == "clamp":  # its bounds may be maps
            continue
        spellings = [function, name]
        for home in (torch, F):
            other = getattr(home, name, None)
            if other is not None and other not in spellings:
                spellings.append(other)
        _spell(name, names, *spellings)


_spell_all()


def _spell_modules() -> None:
    classes: dict[type, tuple[str, tuple[str, ...]]] = {
        nn.ReLU: ("relu", ()),
        nn.ReLU6: ("relu6", ()),
        nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
        nn.SiLU: ("silu", ()),
        nn.Sigmoid: ("sigmoid", ()),
        nn.Hardswish: ("hardswish", ()),
        nn.Hardsigmoid: ("hardsigmoid", ()),
        nn.GELU: ("gelu", ("approximate",)),
        nn.Tanh: ("tanh", ()),
        nn.ELU: ("elu", ("alpha",)),
        nn.SELU: ("selu", ()),
        nn.CELU: ("celu", ("alpha",)),
        nn.Mish: ("mish", ()),
        nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
        nn.Softplus: ("softplus", ("beta", "threshold")),
        nn.Softsign: ("softsign", ()),
        nn.LogSigmoid: ("logsigmoid", ()),
        nn.Hardshrink: ("hardshrink", ("lambd",)),
        nn.Softshrink: ("softshrink", ("lambd",)),
        nn.Tanhshrink: ("tanhshrink", ()),
        nn.Threshold: ("threshold", ("threshold", "value")),
    }
    for cls, (name, names) in classes.items():

        def _module(module: nn.Module, input: Any, name: str = name, names: tuple[str, ...] = names) -> Any:
            return _make(name, {key: getattr(module, key) for key in names}, input)

        spelled(cls)(_module)


_spell_modules()


@spelled(operator.neg)
def _neg(input: Any) -> tuple[Operator, list[Any]]:
    return Pointwise("neg", {}), [input]


@spelled(operator.abs)
def _abs(input: Any) -> tuple[Operator, list[Any]]:
    return Pointwise("abs", {}), [input]


@spelled(operator.invert, operator.inv)
def _invert(input: Any) -> tuple[Operator, list[Any]]:
    return Pointwise("bitwise_not", {}), [input]


@spelled(torch.special.expit)
def _expit(input: Any) -> tuple[Operator, list[Any]]:
    return Pointwise("sigmoid", {}), [input]


@spelled("clamp", "clip", torch.clamp, torch.clip)
def _clamp(input: Any, min: Any = None, max: Any = None) -> tuple[Operator, list[Any]]:
    if not any(isinstance(bound, Node | Tensor) for bound in (min, max)):
        return Pointwise("clamp", {"min": min, "max": max}), [input]
    if max is None:
        return binary("maximum", input, min)
    return binary("minimum", input, max) if min is None else of_three("clamp", input, min, max)


@spelled("clamp_min", torch.clamp_min)
def _clamp_min(input: Any, min: Any) -> tuple[Operator, list[Any]]:
    return _clamp(input, min=min)


@spelled("clamp_max", torch.clamp_max)
def _clamp_max(input: Any, max: Any) -> tuple[Operator, list[Any]]:
    return _clamp(input, max=max)


def _spell_cast(name: str, dtype: torch.dtype) -> None:
    @spelled(name)
    def _function(input: Any) -> tuple[Operator, list[Any]]:
        return Pointwise("cast", {"dtype": dtype}), [input]


for _name, _dtype in _CASTS.items():
    _spell_cast(_name, _dtype)


@spelled("to", "type")
def _to(input: Any, *args: Any, dtype: Any = None, **options: Any) -> tuple[Operator, list[Any]]:
    if len(args) == 1 and dtype is None:
        dtype, args = constant(args[0], "its type"), ()
    if args or options or not isinstance(dtype, torch.dtype):
        raise StaysDense("it is more than a cast to a type")
    return Pointwise("cast", {"dtype": dtype}), [input]


@spelled(nn.PReLU)
def _prelu_module(module: nn.PReLU, input: Any) -> tuple[Operator, list[Any]]:
    return PReLU(module.weight), [input]


@spelled(F.prelu, "prelu")
def _prelu(input: Any, weight: Any) -> tuple[Operator, list[Any]]:
    return PReLU(constant(weight, "its weight")), [input]
