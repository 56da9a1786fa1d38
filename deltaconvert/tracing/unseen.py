"""What a network may write in frames that the example is not like, read off its code.

It takes no account of order or conditions: a function that names a place and writes to something may write there.
"""

from __future__ import annotations

import dis
import re
from collections import deque
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from torch import nn

from deltaconvert.tracing.keeps import Slot, code_of, kept_by, names_in

_PLACES = (dict, list, set, deque, nn.Parameter)
_CHANGING = (
    "append appendleft extend insert remove pop popleft popitem clear update setdefault add discard __setitem__"
).split()
_ALL_WEIGHTS = frozenset("parameters named_parameters modules named_modules children named_children".split())


def written_by(module: nn.Module, others: Mapping[str, Slot], around: nn.Module) -> str | None:
    """The name of a place that `module` may write to and others have as well; None if there is none.

    others: what is kept besides `module` in the network `around` it.
    """
    shared = {id(slot.value) for slot in others.values()} | {id(around)}
    places = {name: slot.value for name, slot in kept_by(module).items() if id(slot.value) in shared}
    for code in code_of(module) if places else ():
        names, attributes, items = set(names_in(code)), set(_attributes(code)), _writes_to_items(code)
        for name, value in places.items():
            if names.isdisjoint(re.findall(r"[^\W\d]\w*", name)):
                continue
            if (items and isinstance(value, _PLACES)) or any(_has(value, each) for each in attributes):
                return name
    return None


def uncounted(network: nn.Module) -> frozenset[str]:
    """Names in code that writes to tensors where torch does not count it: self.last.weight.data.mul_(2)."""
    found: set[str] = set()
    for code in code_of(network):
        names = set(names_in(code))
        if not names.isdisjoint(("data", "numpy")) and (
            _writes_to_items(code) or "data" in _attributes(code)
        ):
            found |= names
    return frozenset(found)


def are_named(tensor: str, names: frozenset[str]) -> bool:
    """Whether code with these names may write to a tensor of this name."""
    return tensor in names or not names.isdisjoint(_ALL_WEIGHTS)


def _has(value: Any, attribute: str) -> bool:
    return not isinstance(value, type | dict | list) and attribute in getattr(value, "__dict__", ())


def _writes_to_items(code: CodeType) -> bool:
    """Into a list or dict, or to a tensor in place."""
    in_place = any(name.endswith("_") and not name.endswith("__") for name in names_in(code))
    return in_place or not set(names_in(code)).isdisjoint(_CHANGING) or any(map(_is_item, _steps(code)))


def _is_item(step: dis.Instruction) -> bool:
    if step.opname == "BINARY_OP":
        return step.argrepr.endswith("=")
    return step.opname.startswith("INPLACE_") or step.opname in (
        "STORE_SUBSCR",
        "STORE_SLICE",
        "DELETE_SUBSCR",
    )


def _attributes(code: CodeType) -> Iterator[str]:
    """The names of attributes that it assigns."""
    return (step.argval for step in _steps(code) if step.opname in ("STORE_ATTR", "DELETE_ATTR"))


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _steps(inner)
