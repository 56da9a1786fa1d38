"""A constant beside a map or around it is padding, where it is one number such as torch.zeros(n, 4, h, w). Another
one, such as coordinates, takes the place of padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.ops.arithmetic import OfThree
from deltaconvert.ops.base import Operator, StaysDense
from deltaconvert.ops.pad import Pad

Padded = tuple[Operator, list[Any]]


def padded_beside(tensors: Sequence[Any], dim: int) -> list[Any]:
    """The maps among `tensors`, which are joined along `dim`: each with its part of the constants, or as it is."""
    shapes = [_shape(t) for t in tensors]
    if len({(_dtype(t), len(shape)) for t, shape in zip(tensors, shapes, strict=True)}) != 1:
        raise StaysDense("it joins constants")
    rank = len(shapes[0])
    dim %= max(rank, 1)
    if not max(1, rank - 3) <= dim or len({(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}) != 1:
        raise StaysDense(f"it joins constants along dimension {dim}")
    parts: list[tuple[Node, list[Tensor], list[Tensor]]] = []  # a map, what is before it and what behind it
    first: list[Tensor] = []
    for t in tensors:
        if isinstance(t, Node):
            parts.append((t, [] if parts else first, []))
        else:
            (parts[-1][2] if parts else first).append(t)
    return [_between(*part, dim) for part in parts]


def _between(inner: Node, before: list[Tensor], behind: list[Tensor], dim: int) -> Node | Padded:
    """`inner` with constants on both sides of it along `dim`."""
    constants = before + behind
    if not constants:
        return inner
    number, rank = _number_in(constants), len(_shape(inner))
    pads = [sum(t.shape[dim] for t in side) for side in (before, behind)]
    padded = _pad(inner, {dim: pads}, number or 0.0)
    if number is not None:
        return padded
    if rank != 4:
        raise StaysDense("it joins constants")
    hole = constants[0].new_zeros(()).expand(_shape(inner))
    around = _narrowed(torch.cat([*before, hole, *behind], dim), dim)
    if len(around) != 1:
        raise StaysDense("it joins constants that differ from stream to stream")
    places = torch.arange(around.shape[dim], device=around.device)
    is_inner = (places >= pads[0]) & (places < len(places) - pads[1])
    return OfThree("where", is_inner.view([-1 if at == dim else 1 for at in range(rank)]), None, around), [
        padded
    ]


def _narrowed(constant: Tensor, dim: int) -> Tensor:
    """Of length 1 along all dimensions but `dim` along which it repeats itself."""
    for at in range(constant.dim()):
        one = constant.narrow(at, 0, 1)
        if at != dim and torch.equal(constant, one.expand_as(constant)):
            constant = one
    return constant.clone()


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
