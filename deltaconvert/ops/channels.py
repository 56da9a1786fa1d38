"""Joining maps along the channels and taking channels out of one (ONNX Concat, Slice, Split)."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deltaconvert.ops.base import Operator, StaysDense, constant, spelled


class Concat(Operator):
    """N C1 H W, N C2 H W, ... -> N (C1 + C2 + ...) H W; `dim` is 1 or -3, which differ where it runs dense."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.dim)


class Channels(Operator):
    """N C H W -> N C' H W: the channels start, start + step, ... before stop."""

    def __init__(self, start: int | None, stop: int | None, step: int | None):
        super().__init__()
        self.start, self.stop, self.step = start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop : self.step]


@spelled(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Any, dim: Any = 0, *, axis: Any = None) -> tuple[Operator, list[Any]]:
    dim = constant(dim if axis is None else axis, "dim")
    if dim not in (1, -3):
        raise StaysDense(f"it joins along dimension {dim}, not along the channels")
    if not isinstance(tensors, list | tuple) or not all(isinstance(t, Node) for t in tensors):
        raise StaysDense("it joins constants")
    return Concat(dim), list(tensors)


@spelled(operator.getitem)
def _getitem(x: Any, index: Any) -> tuple[Operator, list[Any]]:
    parts = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    if (
        len(parts) < 2
        or any(part not in (whole, Ellipsis) for part in (parts[0], *parts[2:]))
        or parts[0] is Ellipsis
    ):
        raise StaysDense("it takes more than a slice of the channels")
    if not isinstance(parts[1], slice):
        raise StaysDense("it takes channels by something else than a slice")
    for bound in (parts[1].start, parts[1].stop, parts[1].step):
        constant(bound, "its slice")
    return Channels(parts[1].start, parts[1].stop, parts[1].step), [x]
