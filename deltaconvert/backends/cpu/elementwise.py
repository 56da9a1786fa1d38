"""Operators of single pixels whose bits do not depend on where in memory a value lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.layouts import as_points, as_rows
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.local_response_norm import LocalResponseNorm
from deltaconvert.ops.over_channels import OverChannels
from deltaconvert.ops.pointwise import Pointwise

# Functions of torch that round at most once, so that vectors and single values give the same bits.
EXACT = (
    *("relu", "relu6", "leaky_relu", "hardtanh", "clamp", "abs", "neg", "square", "sqrt", "reciprocal"),
    *("threshold", "hardshrink", "floor", "ceil", "round", "trunc", "sign", "nan_to_num", "isnan"),
    *("logical_not", "bitwise_not", "cast"),
)
# Functions of arithmetic for which that does not hold.
ROUNDED = ("pow", "floor_divide", "remainder", "fmod")
GRAIN = 32768  # values that torch gives to one thread
VECTOR = 64  # values of two of the widest vectors, at the smallest dtype


class Elementwise:
    """A stage of a tail. It works in place if it can: the value belongs to it."""

    in_order = False

    def __init__(self, stage: Operator, takes: int, slot: int):
        self._stage, self.takes, self._slot = stage, takes, slot

    def __call__(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        return apply(self._stage, [*others[: self._slot], value, *others[self._slot :]], self._slot)

    def rows(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The same of rows (n, C)."""
        return as_rows(self(as_points(value), [as_points(other) for other in others]))


def apply(stage: Operator, inputs: Sequence[Tensor], own: int | None = None) -> Tensor:
    """Apply an operator of single pixels with the same bits wherever a value lies. Input `own` may be overwritten."""
    if isinstance(stage, OverChannels):
        # In rows the channels are summed one by one. In a map with dimensions behind them the order depends on the map.
        (x,) = inputs
        rows = stage.rows(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]))
        return rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
    if isinstance(stage, LocalResponseNorm):
        return inputs[0] / steadily(stage.power, stage.base(inputs[0]))
    if isinstance(stage, Pointwise):
        if stage.function not in EXACT:
            return steadily(stage, inputs[0])
        in_place = getattr(torch, stage.function + "_", None)
        if own is not None and in_place is not None and not stage.options:
            return in_place(inputs[own])
    if isinstance(stage, BatchNorm):
        scale, shift = stage.scale.view(-1, 1, 1), stage.shift.view(-1, 1, 1)
        return inputs[0].mul_(scale).add_(shift) if own is not None else (inputs[0] * scale).add_(shift)
    if isinstance(stage, Arithmetic) and stage.function in ROUNDED:
        return steadily(stage.call, *stage.operands(*inputs))
    if isinstance(stage, Arithmetic) and stage.function == "add" and own is not None and len(inputs) == 2:
        mine, other = inputs[own], inputs[1 - own]
        if mine.shape[1] >= other.shape[1] and mine.dtype == torch.result_type(mine, other):
            return mine.add_(other)
    return stage(*inputs)


def steadily(function: Callable[..., Tensor], *operands: Any) -> Tensor:
    """Apply a function of each value of maps (channels last or rows) and numbers, with the same bits wherever a value
    lies.

    torch computes exp and the like by vectors, and the rest of a thread's share one by one, with other bits. Here the
    values are cut so that vectors and threads have no rest.
    """
    maps = [x for x in operands if isinstance(x, Tensor) and x.dim() > 0]
    n, channels, height, width = shape = torch.broadcast_shapes(*(x.shape for x in maps))
    flat = [
        x.expand(shape).permute(0, 2, 3, 1).reshape(-1) if isinstance(x, Tensor) and x.dim() > 0 else x
        for x in operands
    ]

    def of(start: int, stop: int, padding: int = 0) -> Tensor:
        """The function of values start to stop, and as many ones."""
        return function(
            *(
                F.pad(x[start:stop], (0, padding), value=1) if isinstance(x, Tensor) and x.dim() > 0 else x
                for x in flat
            )
        )

    length, pieces, start = shape.numel(), [], 0
    for piece in (GRAIN * torch.get_num_threads(), GRAIN):
        while length - start >= piece:
            pieces.append(of(start, start + piece))
            start += piece
    rest = length - start
    if rest:
        pieces.append(of(start, length, -rest % VECTOR)[:rest])
    result = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return result.view(n, height, width, channels).permute(0, 3, 1, 2)
