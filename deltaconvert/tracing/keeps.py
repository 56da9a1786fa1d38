"""What a network keeps from call to call: all that its own code could write to, as slots that can be compared and set.

Attributes of its modules, the lists, dicts and objects in them, and what its forwards and hooks see besides: variables
around a function, the globals that it names, attributes of classes. Objects of other libraries are known by themselves
alone: a network may hold its trainer, and that everything else.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.layout import memory_of

_OWN = frozenset(vars(nn.Module())) - {"training"}
_STORES = ("_buffers", "_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks")
_PLAIN = (int, float, complex, str, bytes, type(None), slice, range, torch.dtype, torch.device, torch.layout)
_LONG = 10_000  # a list of more is data, and known by its length
_NOT_ITS_OWN = {"torch", "deltaconvert", "numpy", *sys.stdlib_module_names}
_DEEP = 100  # places within each other; Python calls functions in each other 1,000 times
_OBJECTS = 1_000  # of its own that are looked into; an application may hang on a network


@dataclass(frozen=True)
class Slot:
    """One place: `holder` has it under `key`; None where nothing can be put into it. mark: equal where nothing was
    written between."""

    holder: Any
    key: Any
    value: Any
    mark: Any

    def put(self, value: Any) -> None:
        if isinstance(self.holder, dict | list):
            self.holder[self.key] = value
        elif isinstance(self.holder, CellType):
            self.holder.cell_contents = value
        else:
            setattr(self.holder, self.key, value)


def kept_by(network: nn.Module, without: Sequence[nn.Module] = ()) -> dict[str, Slot]:
    """The slots by their names: layer1.0.seen, state['h'][0]. The network must outlive them.

    without: modules that are not looked into.
    """
    return _walk(network, without).found


def code_of(network: nn.Module) -> list[CodeType]:
    """The code of its own functions that a call may run: of forward and hooks, and of what is named in such code."""
    functions = _walk(network).functions
    names = {"forward", "__call__", "hook"}
    found: dict[int, CodeType] = {}
    while True:
        more = {
            id(f): f.__code__
            for f, known_as in functions
            if id(f) not in found and names.intersection(known_as)
        }
        if not more:
            return list(found.values())
        found |= more
        names.update(name for code in more.values() for name in names_in(code))


def _walk(network: nn.Module, without: Sequence[nn.Module] = ()) -> _Walk:
    hooks = _hooks(network)
    kinds = (*map(type, network.modules()), *map(type, hooks), *hooks)
    walk = _Walk({_home(each) for each in kinds} - _NOT_ITS_OWN, without)
    walk.into(network, "")
    return walk


def _hooks(network: nn.Module) -> list[Any]:
    stores = ("_forward_hooks", "_forward_pre_hooks")
    return [
        hook
        for module in network.modules()
        for name in stores
        for hook in vars(module).get(name, {}).values()
    ]


class Itself:
    """Equal to itself alone; keeps the object, so that no other takes its place in memory."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class Memory:
    """Equal where a tensor is the same place in memory, under whatever name, and nothing was written there between."""

    def __init__(self, value: Tensor):
        plain = value.layout == torch.strided and not value.is_quantized
        self.value = value
        self.place = (memory_of(value), value.storage_offset(), value.stride()) if plain else id(value)
        self.form = value.shape, value.dtype, 0 if value.is_inference() else value._version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and (self.place, self.form) == (other.place, other.form)

    __hash__ = None  # type: ignore[assignment]


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Memory(value)
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, tuple | deque):
        return type(value), *map(_mark, value)
    if isinstance(value, list):
        return list, len(value)
    if isinstance(value, Mapping):
        return type(value), *map(_mark, value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(value)
    if isinstance(value, nn.Module | type | ModuleType | FunctionType | MethodType):
        return Itself(value)
    return (type(value),) if hasattr(value, "__dict__") else (type(value), _reduced(value))


def _reduced(value: Any) -> str:
    """What copies of it would be made of: the place of an iterator, the numbers of an array."""
    try:
        return repr(value.__reduce_ex__(4))
    except Exception:  # a lock
        return ""


class _Walk:
    """homes: the packages of the network's classes and hooks."""

    def __init__(self, homes: set[str], without: Sequence[nn.Module]) -> None:
        self.homes, self.objects, self.depth = homes, 0, 0
        self.found: dict[str, Slot] = {}
        # With their names: self.act is a function, too.
        self.functions: list[tuple[FunctionType, list[str]]] = []
        self._seen: dict[int, Any] = {id(module): module for module in without}

    def into(self, value: Any, path: str) -> None:
        """Slots of what `value` holds."""
        if isinstance(value, type):
            self._class(value)
        if isinstance(value, (*_PLAIN, Tensor, type)) or id(value) in self._seen:
            return
        if self.depth == _DEEP:
            return
        self._seen[id(value)] = value
        self.depth += 1
        self._look_into(value, path)
        self.depth -= 1

    def _look_into(self, value: Any, path: str) -> None:
        if isinstance(value, nn.Module):
            self._module(value, path)
        elif isinstance(value, tuple | deque | list | dict):
            self._items(value, path)
        elif isinstance(value, FunctionType):
            self._function(value, path)
        elif isinstance(value, MethodType):
            self.into((value.__self__, value.__func__), path)
        elif isinstance(value, functools.partial):
            for each in (value.func, value.args, value.keywords):
                self.into(each, path)
        elif isinstance(value, staticmethod | classmethod):
            self.into(value.__func__, path)
        elif isinstance(value, property):
            self.into((value.fget, value.fset), path)
        elif _home(type(value)) in self.homes and self.objects < _OBJECTS:
            self.objects += 1
            self._object(value, path)

    def _slot(self, holder: Any, key: Any, value: Any, path: str) -> None:
        while path in self.found:  # functions of one name have variables of one name
            path += "'"
        self.found[path] = Slot(holder, key, value, _mark(value))
        self.into(value, path)

    def _items(self, value: Any, path: str) -> None:
        if len(value) > _LONG:
            return
        holds = isinstance(value, dict | list)
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            inner = f"{path}[{key!r}]"
            self._slot(value, key, item, inner) if holds else self.into(item, inner)

    def _module(self, module: nn.Module, path: str) -> None:
        inside = f"{path}." if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            self._script(module, inside)
            return
        own = vars(module)
        for store in (own[name] for name in _STORES if name in own):
            hooks = "hook " if store is own["_forward_hooks"] or store is own["_forward_pre_hooks"] else ""
            for name, value in list(store.items()):
                self._slot(store, name, value, f"{inside}{hooks}{name}")
        for name, value in list(own.items()):
            if name not in _OWN:
                self._slot(own, name, value, f"{inside}{name}")
        self._class(type(module))

    def _script(self, module: torch.jit.ScriptModule, inside: str) -> None:
        """A program of TorchScript: it can be looked at, and takes no other values."""
        tensors = (*module.named_parameters(), *module.named_buffers())
        numbers = [(name, getattr(module, name)) for name in module._concrete_type.get_attributes()]
        for name, value in (*tensors, *numbers):
            self.found[inside + name] = Slot(None, name, value, _mark(value))
        for name, child in module.named_children():
            self._module(child, inside + name)

    def _object(self, value: Any, path: str) -> None:
        for name, inner in list(vars(value).items()) if hasattr(value, "__dict__") else ():
            self._slot(vars(value), name, inner, f"{path}.{name}")
        for kind in type(value).__mro__:
            for name in _names(vars(kind).get("__slots__", ())):
                if hasattr(value, name):
                    self._slot(value, name, getattr(value, name), f"{path}.{name}")
        self._class(type(value))

    def _class(self, kind: type) -> None:
        for each in kind.__mro__:
            if not _is_own(each) or id(each) in self._seen:
                continue
            self._seen[id(each)] = each
            for name, value in list(vars(each).items()):
                if isinstance(value, FunctionType | staticmethod | classmethod | property):
                    self.into(value, f"{each.__name__}.{name}")
                elif not (name.startswith("__") and name.endswith("__")):
                    self._slot(each, name, value, f"{each.__name__}.{name}")

    def _function(self, function: FunctionType, path: str) -> None:
        if not _is_own(function):
            return
        name = function.__name__
        self.functions.append((function, [name, *re.findall(r"[^\W\d]\w*", path.rpartition(".")[2])]))
        self.into((function.__defaults__, function.__kwdefaults__), name)
        for key, value in vars(function).items():
            self._slot(vars(function), key, value, f"{name}.{key}")
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._slot(cell, "cell_contents", cell.cell_contents, f"{name}: {key}")
            except ValueError:  # it is empty
                continue
        named = set(names_in(function.__code__))
        for key in named & function.__globals__.keys():
            value = function.__globals__[key]
            if isinstance(value, ModuleType):
                if _is_own(value):
                    for inner in named & vars(value).keys():
                        self._slot(vars(value), inner, vars(value)[inner], f"{key}.{inner}")
            else:
                self._slot(function.__globals__, key, value, key)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


def _home(what: Any) -> str:
    """The package that it is from."""
    home = what.__name__ if isinstance(what, ModuleType) else getattr(what, "__module__", None)
    return home.partition(".")[0] if isinstance(home, str) else "torch"


def _is_own(what: Any) -> bool:
    """Code of the network or of a library of networks: not torch's, Python's or deltaconvert's."""
    return _home(what) not in _NOT_ITS_OWN
