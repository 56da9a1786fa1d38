"""A constant that is one number throughout, such as torch.zeros(n, 4, h, w), is padding of the map beside or in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.ops.base import Operator, StaysDense
from deltaconvert.ops.pad import Pad

Padded = tuple[Operator, list[Any]]


def padded_beside(tensors: Sequence[Any], dim: int) -> list[Any]:
    """The maps among `tensors`, which are joined along `dim`: each with its part of the constants, or as it is."""
    constants = [t for t in tensors if isinstance(t, Tensor)]
    number, dim = _number_in(constants), dim % 4
    if number is None or dim == 0 or len({_sides(t, but=dim) for t in tensors}) != 1:
        raise StaysDense("it joins constants")
    parts: list[tuple[Node, list[int]]] = []  # a map, how much is before it and how much behind it
    first = 0
    for t in tensors:
        if isinstance(t, Node):
            parts.append((t, [0 if parts else first, 0]))
        elif parts:
            parts[-1][1][1] += t.shape[dim]
        else:
            first += t.shape[dim]
    return [_pad(t, {dim: pads}, number) if any(pads) else t for t, pads in parts]


def padded_within(constant: Tensor, index: Sequence[Any], inner: Node) -> Padded:
    """The constant with `inner` at constant[index], slices all of them."""
    number = _number_in([constant])
    parts = index[:-1] if index[-1:] == (...,) else index
    if number is None or constant.dim() != 4 or not all(isinstance(part, slice) for part in parts):
        raise StaysDense("it writes to a constant")
    whole = [slice(None)] * (4 - len(parts))
    taken = [range(side)[part] for side, part in zip(constant.shape, (*parts, *whole), strict=True)]
    fits = _sides(inner) == (constant.dtype, *map(len, taken)) and len(taken[0]) == len(constant)
    if not fits or any(part.step != 1 for part in taken):
        raise StaysDense("it writes to a constant otherwise than a whole map to slices")
    pads = {dim: [taken[dim].start, constant.shape[dim] - taken[dim].stop] for dim in (1, 2, 3)}
    return _pad(inner, pads, number)


def _pad(inner: Node, pads: Mapping[int, Sequence[int]], number: float) -> Padded:
    both = [pads.get(dim, (0, 0)) for dim in (3, 2, 1)]  # as torch reads them
    return Pad(tuple(pad for each in both for pad in each), "constant", number), [inner]


def _number_in(constants: Sequence[Tensor]) -> float | None:
    """What all their values are."""
    numbers = {float(t.flatten()[0]) for t in constants if t.numel()}
    if len(numbers) != 1:
        return None
    (number,) = numbers
    return number if all(torch.equal(t, torch.full_like(t, number)) for t in constants) else None


def _sides(value: Node | Tensor, but: int | None = None) -> tuple[Any, ...]:
    """Its type and the lengths of its sides, but for one; its type alone where it is no N C H W."""
    known: Any = value.meta if isinstance(value, Node) else {"shape": value.shape, "dtype": value.dtype}
    shape = known.get("shape") or ()
    return known.get("dtype"), *(side for dim, side in enumerate(shape) if dim != but and len(shape) == 4)
