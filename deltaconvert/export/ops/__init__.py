"""Operators in ONNX: one file for each file of deltaconvert.ops, found by its name.

A spelling is a function (g, operator, *values) -> value in standard operators. It is called in two places, and
`g.axis` says which: 1 for whole maps N C H W, -1 for pixels, whose channels come last; only operators whose output
pixel reads one pixel are spelled there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from deltaconvert.export.graph import Body, Scope
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.fused import Fused, stages_of

Spelling = Callable[..., str]
_spellings: dict[type[Operator], Spelling] = {}


def in_onnx(*operators: type[Operator]) -> Callable[[Spelling], Spelling]:
    """Register how operators are written in ONNX."""

    def register(spelling: Spelling) -> Spelling:
        _spellings.update(dict.fromkeys(operators, spelling))
        return spelling

    return register


@lru_cache(maxsize=1)
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def why_not(operator: Operator, shapes: Sequence[Shape]) -> str | None:
    """What of an operator has no spelling in ONNX; None where it can be written. shapes: of its inputs."""
    _discover()
    for stage in stages_of(operator):
        if type(stage) not in _spellings:
            return type(stage).__name__
    g = Body([])
    g.shape = shapes[0]
    try:
        spell(g, operator, *(f"x{place}" for place in range(len(shapes))))
    except (KeyError, TypeError) as error:  # a function, or an option of one, that no table has
        return f"{type(operator).__name__}: {error}"
    return None


def spell(g: Scope, operator: Any, *values: str) -> str:
    _discover()
    if isinstance(operator, Fused):
        head = spell(g, operator.head, *values[: operator.head_inputs])
        return spell_tail(g, operator, head, values[operator.head_inputs :])
    return _spellings[type(operator)](g, operator, *values)


def spell_tail(g: Scope, operator: Any, value: str, others: Any) -> str:
    """What follows the head of a fused operator."""
    if not isinstance(operator, Fused):
        return value
    place = 0
    for stage, count, slot in zip(list(operator.stages)[1:], operator.counts, operator.slots, strict=True):
        inputs = list(others[place : place + count])
        inputs.insert(slot, value)
        value, place = spell(g, stage, *inputs), place + count
    return value
