"""Replacements, while a network is traced, for functions of torch whose calls torch.fx does not see.

They get proxies in place of tensors and sizes, and record the call or answer for the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import get_overridable_functions
from torch.utils import _pytree as pytree

Function = Callable[..., Any]
Place = tuple[Any, str]  # a module or class, and the name of a function in it
Functions = dict[Place, Function]


class Kind(type):
    """Metaclass of a class that stands in for another, `usual`: isinstance and issubclass see no difference, calls
    do."""

    usual: type

    def __call__(cls, *args: Any, **named: Any) -> Any:
        return _of_numbers(cls.usual)(*args, **named)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.usual)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, cls.usual)


class _Size(metaclass=Kind):
    usual = torch.Size


# Functions that take sizes one by one; torch then asks the first of them for a number.
_SIZES: list[Place] = [
    *((torch, name) for name in ("zeros", "ones", "empty")),
    *(
        (Tensor, name)
        for name in ("expand", "repeat", "reshape", "view", "new_zeros", "new_ones", "new_empty")
    ),
]
_NUMBERS: list[Place] = [(torch, "tensor"), (torch, "as_tensor")]
_LIMITS: list[Place] = [(torch, "finfo"), (torch, "iinfo")]
_SIZE: Place = (torch, "Size")
_SETATTR: Place = (nn.Module, "__setattr__")


class StandIns:
    """Replaces some functions of torch, for the whole process, as torch.fx does with modules.

    Neither __torch_function__ nor a mode would do: torch reads sizes before it looks for overrides. A mode would see
    torch.tensor, but every other call as well. finfo is a class, and asks for no overrides.

    torch.zeros(x.shape[0], 4, *x.shape[2:])     a call in the graph
    torch.tensor([x.shape[2], x.shape[3]])       likewise
    torch.Size((x.shape[0], 4))                  likewise
    torch.finfo(x.dtype)                         of the example's type, which a converted network keeps
    self.mean = self.mean.type_as(x)             kept by the tracer: the graph reads the module's own tensor
    """

    def __init__(
        self, value_of: Callable[[fx.Proxy], Any], assign: Callable[[nn.Module, str, fx.Proxy], bool]
    ):
        """value_of: a value on the example, None where it cannot be told. assign: False where the module does it
        itself."""
        self._value_of = value_of
        get_overridable_functions()  # torch caches this list: it must not hold our functions
        places = (*_SIZES, *_NUMBERS, *_LIMITS, _SIZE, _SETATTR)
        self._usual = {(home, name): getattr(home, name) for home, name in places}
        self._ours: Functions = {place: self._on_the_example(place) for place in _LIMITS}
        self._ours |= {(home, name): _of_sizes(home, name) for home, name in _SIZES}
        self._ours |= {place: _of_numbers(self._usual[place]) for place in _NUMBERS}
        self._ours |= {_SIZE: _Size}
        self._ours[_SETATTR] = _assigning(self._usual[_SETATTR], assign)

    def answering(self) -> AbstractContextManager[None]:
        return _switched(self._ours)

    def resting(self) -> AbstractContextManager[None]:
        """While torch imports parts of itself, which may keep the functions that they find."""
        return _switched(self._usual)

    def _on_the_example(self, place: Place) -> Function:
        """The function, called with the values that its arguments have on the example."""
        usual = self._usual[place]

        def known(proxy: fx.Proxy) -> Any:
            value = self._value_of(proxy)
            return proxy if value is None else value

        def function(*args: Any, **named: Any) -> Any:
            args, named = pytree.tree_map_only(fx.Proxy, known, (args, named))
            return usual(*args, **named)

        return function


def _of_sizes(home: Any, name: str) -> Function:
    usual = getattr(home, name)

    def method(value: Any, *sizes: Any, **named: Any) -> Any:
        if sizes and isinstance(sizes[0], fx.Proxy):
            return sizes[0].tracer.create_proxy("call_method", name, (value, *sizes), named)
        return usual(value, *sizes, **named)

    def function(*sizes: Any, **named: Any) -> Any:
        if sizes and isinstance(sizes[0], fx.Proxy):
            return sizes[0].tracer.create_proxy("call_function", usual, sizes, named)
        return usual(*sizes, **named)

    return method if home is Tensor else function


def _of_numbers(usual: Function) -> Function:
    def function(*args: Any, **named: Any) -> Any:
        for value in pytree.tree_leaves((args, named)):
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", usual, args, named)
        return usual(*args, **named)

    return function


def _assigning(usual: Function, assign: Function) -> Function:
    def setattr_(module: nn.Module, name: str, value: Any) -> None:
        if not isinstance(value, fx.Proxy) or not assign(module, name, value):
            usual(module, name, value)

    return setattr_


@contextmanager
def _switched(functions: Functions) -> Iterator[None]:
    before = {(home, name): vars(home).get(name) for home, name in functions}
    try:
        for (home, name), function in functions.items():
            setattr(home, name, function)
        yield
    finally:
        for (home, name), own in before.items():
            if own is None:  # inherited
                delattr(home, name)
            else:
                setattr(home, name, own)
