"""Stand-ins for what an earlier call left behind: a network that asks for their value reads what it remembers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of a tensor in Python.
_ASKING = (
    "__bool__ __int__ __float__ __complex__ __index__ __contains__ __array__ __iter__ item tolist numpy is_nonzero "
    "equal allclose"
).split()
_WHOLE = ("copy_", "zero_", "fill_")


class Read(BaseException):
    """The value was asked for. No Exception: forward may catch these."""


def stale(value: Any) -> Any:
    """What takes the place of `value`."""
    if isinstance(value, Tensor):
        return StaleTensor.of(value)
    if type(value) is tuple:
        return tuple(map(stale, value))
    if type(value) is list:
        return StaleList()
    return StaleNumber("nan") if type(value) in (int, float) else Stale()


class StaleTensor(Tensor):
    """Of the same form, with other numbers. What is computed from it is one as well, until it is overwritten."""

    @staticmethod
    def of(value: Tensor) -> Tensor:
        value = value.detach()
        if value.dtype == torch.bool:
            return (~value).as_subclass(StaleTensor)
        wrong = torch.nan if value.is_floating_point() or value.is_complex() else 1
        return (value + wrong).as_subclass(StaleTensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ASKING:
            raise Read
        result = super().__torch_function__(func, types, args, kwargs or {})
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            _note_write(name, *args)
        return result


def _note_write(name: str, written: Any, *read: Any) -> None:
    """x.copy_(y) makes x what y is; x.add_(y) makes it stale if y is."""
    if any(isinstance(value, StaleTensor) for value in read):
        written.__class__ = StaleTensor
    elif name in _WHOLE or (name == "__setitem__" and read[0] in (Ellipsis, slice(None))):
        written.__class__ = Tensor


class StaleNumber(float):
    """Not a number: so are sums with it, and maps that it is multiplied with. There is no telling what it is."""


class StaleList(list[Any]):
    """It may grow: a log that nobody reads."""


class Stale:
    """Anything else."""


def _read(*_: Any, **__: Any) -> Any:
    raise Read


def _computed(*_: Any, **__: Any) -> StaleNumber:
    return StaleNumber("nan")


_ARITHMETIC = "add sub mul truediv floordiv mod pow".split()
_SIGNS = "neg pos abs".split()
# What asks for a number, for a value of any kind, and for what is in a list.
_OF_NUMBERS = "bool int index round trunc floor ceil divmod eq ne lt le gt ge hash format str repr".split()
_OF_ANY = (
    "getattr call len iter next contains getitem setitem add radd mul rmul enter float invert and or".split()
)
_OF_LISTS = (
    "bool len iter contains getitem setitem eq ne lt le gt ge add radd mul rmul reversed str repr".split()
)

for _name in _ARITHMETIC:
    _plain = getattr(float, f"__{_name}__")

    def _method(self: float, other: Any, _plain: Any = _plain) -> Any:
        result = _plain(self, other)
        return result if result is NotImplemented else StaleNumber("nan")

    setattr(StaleNumber, f"__{_name}__", _method)
    setattr(StaleNumber, f"__r{_name}__", _method)
for _kind, _names, _answer in (
    (StaleNumber, _SIGNS, _computed),
    (StaleNumber, _OF_NUMBERS, _read),
    (Stale, _OF_NUMBERS + _OF_ANY, _read),
    (StaleList, _OF_LISTS, _read),
):
    for _name in _names:
        setattr(_kind, f"__{_name}__", _answer)
