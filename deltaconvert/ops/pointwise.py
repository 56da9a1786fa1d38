"""Functions of one value at a time: activations, clamps, exp and its kin, casts of a map are not among them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
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
}


class Pointwise(Operator):
    """One function of each value, with constant settings; N C H W -> N C H W."""

    elementwise = True

    def __init__(self, function: str, options: dict[str, Any]):
        super().__init__()
        self.function, self.options = function, options
        self._call = (_ACTIVATIONS.get(function) or _PLAIN[function])[0]

    @property
    def activation(self) -> bool:  # type: ignore[override]
        return self.function in _ACTIVATIONS

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, **self.options)

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        return self, layouts[0]


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


@spelled("clip", torch.clip)
def _clip(input: Any, min: Any = None, max: Any = None) -> tuple[Operator, list[Any]]:
    return _make("clamp", {"min": min, "max": max}, input)


@spelled(nn.PReLU)
def _prelu_module(module: nn.PReLU, input: Any) -> tuple[Operator, list[Any]]:
    return PReLU(module.weight), [input]


@spelled(F.prelu, "prelu")
def _prelu(input: Any, weight: Any) -> tuple[Operator, list[Any]]:
    return PReLU(constant(weight, "its weight")), [input]
