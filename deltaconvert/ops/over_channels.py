"""Functions of all channels of a pixel: softmax, arg max, sums, norms (ONNX Softmax, ArgMax, ReduceMean and kin).

What takes the channels away makes a map of one channel here; the pass keep_channels gives networks that want none
their squeeze.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.ops.spatial_norm import spatial_norm

# name -> function of a map and its dimension of channels. The names are also what a saved graph holds.
_SAME: dict[str, Callable[..., Tensor]] = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "normalize": lambda x, dim, p, eps: F.normalize(x, p, dim, eps),
}
_ONE: dict[str, Callable[..., Tensor]] = {
    "argmax": torch.argmax,
    "argmin": torch.argmin,
    "amax": torch.amax,
    "amin": torch.amin,
    "sum": torch.sum,
    "mean": torch.mean,
    "var": torch.var,
    "std": torch.std,
    "vector_norm": lambda x, dim, keepdim, ord: torch.linalg.vector_norm(x, ord, dim, keepdim),
}


class OverChannels(Operator):
    """function(channels of a pixel); N C H W -> N C H W, or N 1 H W for what makes one value of them.

    dim is 1 or -3, which differ where it runs dense.
    """

    integers = True

    def __init__(self, function: str, dim: int, options: dict[str, Any]):
        super().__init__()
        self.function, self.dim, self.options = function, dim, options
        self._call = _SAME.get(function) or _ONE[function]
        self._options = {**options, "keepdim": True} if self.makes_one else options

    @property
    def makes_one(self) -> bool:
        """Of all channels of a pixel one value."""
        return self.function in _ONE

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, dim=self.dim, **self._options)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return None if self.dim in (1, -3) else f"it goes along dimension {self.dim}, not along the channels"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        place = self.dim % len(layout.dims)
        if not layout.in_order(layout.dims[place], 1):
            return None
        moved = OverChannels(self.function, 1, self.options)
        return moved, layout.without_channels() if self.makes_one else layout

    def rows(self, rows: Tensor) -> Tensor:
        """The same function of pixels (n, C)."""
        return self._call(rows, dim=1, **self._options)


def over_channels(function: str, input: Any, dim: Any, **options: Any) -> tuple[Operator, list[Any]]:
    if dim is None:
        raise StaysDense("it does not go along the channels alone")
    dims = constant(dim, "its dimension")
    dims = tuple(dims) if isinstance(dims, list | tuple) else (dims,)
    if len(dims) != 1:
        raise StaysDense(f"it goes along dimensions {', '.join(map(str, dims))}, not along the channels")
    for name, value in options.items():
        if isinstance(constant(value, name), Tensor):
            raise StaysDense(f"{name} is a tensor")
    options = {name: value for name, value in options.items() if value is not None}
    return OverChannels(function, dims[0], options), [input]


def reduce_channels(
    function: str, input: Any, dim: Any, keepdim: Any, **options: Any
) -> tuple[Operator, list[Any]]:
    found = over_channels(function, input, dim, **options)
    if keepdim is not True:
        raise StaysDense("its result has no channels, so it is no map")
    return found


@spelled(torch.softmax, F.softmax, "softmax")
def _softmax(
    input: Any, dim: Any = None, third: Any = None, dtype: Any = None, _stacklevel: int = 3
) -> tuple[Operator, list[Any]]:
    return over_channels("softmax", input, dim, dtype=_dtype(third, dtype))


@spelled(torch.log_softmax, F.log_softmax, "log_softmax")
def _log_softmax(
    input: Any, dim: Any = None, third: Any = None, dtype: Any = None, _stacklevel: int = 3
) -> tuple[Operator, list[Any]]:
    return over_channels("log_softmax", input, dim, dtype=_dtype(third, dtype))


def _dtype(third: Any, dtype: Any) -> Any:
    """The third input of torch.softmax is a dtype, that of F.softmax the depth of a warning."""
    return third if isinstance(third, torch.dtype) else dtype


@spelled(nn.Softmax)
def _softmax_module(module: nn.Softmax, input: Any) -> tuple[Operator, list[Any]]:
    return _softmax(input, module.dim)


@spelled(nn.LogSoftmax)
def _log_softmax_module(module: nn.LogSoftmax, input: Any) -> tuple[Operator, list[Any]]:
    return _log_softmax(input, module.dim)


@spelled(nn.Softmax2d)
def _softmax2d(module: nn.Softmax2d, input: Any) -> tuple[Operator, list[Any]]:
    return _softmax(input, -3)


@spelled(F.normalize)
def _normalize(
    input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None
) -> tuple[Operator, list[Any]]:
    return over_channels("normalize", input, dim, p=p, eps=eps)


def _spell(function: str) -> None:
    @spelled(getattr(torch, function), function)
    def _function(
        input: Any, dim: Any = None, keepdim: Any = False, *, axis: Any = None, dtype: Any = None
    ) -> tuple[Operator, list[Any]]:
        return reduce_channels(function, input, axis if dim is None else dim, keepdim, dtype=dtype)


for _name in ("argmax", "argmin", "amin"):  # mean, amax and sum, also of whole maps, are in resample.py
    _spell(_name)


def _spell_spread(function: str) -> None:
    @spelled(getattr(torch, function), function)
    def _function(
        input: Any, dim: Any = None, unbiased: Any = None, keepdim: Any = False, *, correction: Any = None
    ) -> tuple[Operator, list[Any]]:
        if unbiased is not None:
            correction = int(constant(unbiased, "unbiased"))
        return reduce_channels(function, input, dim, keepdim, correction=correction)


_spell_spread("var")
_spell_spread("std")


@spelled(torch.linalg.vector_norm)
def _vector_norm(
    x: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
) -> tuple[Operator, list[Any]]:
    if dtype is not None:
        raise StaysDense(f"dtype={dtype}")
    if isinstance(dim, list | tuple) and len(dim) == 2 and _order(ord) == 2:
        return spatial_norm(x, dim, keepdim)
    return reduce_channels("vector_norm", x, dim, keepdim, ord=_order(ord))


@spelled(torch.linalg.norm)
def _linalg_norm(
    x: Any, ord: Any = None, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
) -> tuple[Operator, list[Any]]:
    if isinstance(dim, list | tuple) and len(dim) == 2 and ord not in (None, "fro"):
        raise StaysDense(f"its order is {ord!r}, of matrices")
    return _vector_norm(x, ord, dim, keepdim, dtype=dtype)


@spelled(torch.norm, torch.functional.norm, "norm")
def _norm(
    input: Any, p: Any = "fro", dim: Any = None, keepdim: Any = False, *, out: Any = None, dtype: Any = None
) -> tuple[Operator, list[Any]]:
    return _vector_norm(input, p, dim, keepdim, dtype=dtype)


def _order(order: Any) -> Any:
    """2 is what torch takes where nothing is said: of one dimension the Frobenius norm is the Euclidean one."""
    if isinstance(constant(order, "its order"), int | float):
        return order
    if order in (None, "fro"):
        return 2
    raise StaysDense(f"its order is {order!r}")
