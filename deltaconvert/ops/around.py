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
    number, shapes = _number_in([t for t in tensors if isinstance(t, Tensor)]), [_shape(t) for t in tensors]
    if (
        number is None
        or len({(_dtype(t), len(shape)) for t, shape in zip(tensors, shapes, strict=True)}) != 1
    ):
        raise StaysDense("it joins constants")
    rank = len(shapes[0])
    dim %= max(rank, 1)
    if not max(1, rank - 3) <= dim or len({(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}) != 1:
        raise StaysDense(f"it joins constants along dimension {dim}")
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
    fits = _dtype(inner) == constant.dtype and _shape(inner) == tuple(map(len, taken))
    if not fits or len(taken[0]) != len(constant) or any(part.step != 1 for part in taken):
        raise StaysDense("it writes to a constant otherwise than a whole map to slices")
    pads = {dim: [taken[dim].start, constant.shape[dim] - taken[dim].stop] for dim in (1, 2, 3)}
    return _pad(inner, pads, number)


def _pad(inner: Node, pads: Mapping[int, Sequence[int]], number: float) -> Padded:
    """pads: before and behind, by dimension of the tensor, which need not be laid out N C H W."""
    rank = len(_shape(inner))
    both = [pads.get(dim, (0, 0)) for dim in range(rank - 1, max(0, rank - 4), -1)]  # as torch reads them
    return Pad(tuple(pad for each in both for pad in each), "constant", number), [inner]


def _number_in(constants: Sequence[Tensor]) -> float | None:
    """What all their values are."""
    numbers = {float(t.flatten()[0]) for t in constants if t.numel()}
    if len(numbers) != 1:
        return None
    (number,) = numbers
    return number if all(torch.equal(t, torch.full_like(t, number)) for t in constants) else None


def _shape(value: Node | Tensor) -> tuple[int, ...]:
    """Nothing where it is not known."""
    return tuple(value.meta.get("shape", ()) if isinstance(value, Node) else value.shape)


def _dtype(value: Node | Tensor) -> torch.dtype | None:
    return value.meta.get("dtype") if isinstance(value, Node) else value.dtype
