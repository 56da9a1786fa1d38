"""Operators on rows, on windows and on whole maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.over_channels import OverChannels
from deltaconvert.ops.pointwise import Pointwise

# Functions of torch that round once, or not at all, and so to the same bits by vectors and one by one.
EXACT = ("relu", "relu6", "leaky_relu", "hardtanh", "clamp", "abs", "neg", "square", "sqrt", "reciprocal")
# Those of arithmetic that do not.
ROUNDED = ("pow", "floor_divide", "remainder", "fmod")
GRAIN = 32768  # values that torch gives to one thread
VECTOR = 64  # values of two of the widest vectors, at the smallest dtype


class Compute:
    """An operator on rows, on windows and on whole maps, its convolution packed once for oneDNN."""

    def __init__(self, operator: Operator, grid: Grid | None = None):
        self._operator, self._grid = operator, grid
        self._head = head_of(operator)
        self._stages = list(tail_of(operator))
        self._heads = operator.head_inputs if isinstance(operator, Fused) else None
        self._whole: Callable[..., Tensor] = self._head
        self._local: Callable[..., Tensor] = self._head if grid is None else self._head.on_windows
        self._skip = 0
        # A 1x1 convolution of rows: the head itself, or the head on rows of taps.
        self._on_rows = isinstance(self._head, Conv2d) and (
            grid is None or (grid.taps_only and self._head.groups == 1)
        )
        if isinstance(self._head, Conv2d):
            local = _on_taps(self._head) if grid is not None and grid.taps_only else self._head
            activation = self._fused_activation()
            self._whole = PackedConv(self._head, self._head.padding, activation)
            self._local = PackedConv(local, (0, 0), activation)
            self._skip = 1 if activation != "none" else 0

    def rows(self, inputs: Sequence[Tensor]) -> Tensor:
        """(n, C), ... -> (n, C')."""
        if self._on_rows:
            return self.tail(self._product(inputs[0]), inputs[1:])
        value = self._apply_head([_points(x) for x in inputs[: self._heads]])
        return self.tail(value.reshape(value.shape[0], -1), inputs[self._heads :] if self._heads else [])

    def windows(self, windows: Tensor, tiles: Tensor) -> Tensor:
        """The head alone: (tiles * window_pixels, C) -> (tiles * tile_pixels, C')."""
        assert self._grid is not None
        if self._on_rows:
            return self._product(windows.view(len(tiles), -1))
        images = windows.view(len(tiles), *self._grid.window, -1).permute(0, 3, 1, 2)
        value = self._local(images).permute(0, 2, 3, 1)
        value = value.reshape(-1, value.shape[-1])
        return self._grid.crop(value, tiles)

    def _product(self, rows: Tensor) -> Tensor:
        """A 1x1 convolution of rows: one image of n x 1 pixels over the same memory."""
        value = self._local(rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2))
        return value.permute(0, 2, 3, 1).reshape(len(rows), -1)

    def tail(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The elementwise stages behind the head on rows (n, C') of fresh memory."""
        if len(self._stages) == self._skip:
            return value
        return self._apply(_points(value), [_points(other) for other in others]).reshape(value.shape[0], -1)

    def whole(self, values: Sequence[Tensor]) -> Tensor:
        """N C H W, ... -> N C' H' W'."""
        value = self._apply_head(values[: self._heads])
        return self._apply(value, values[self._heads :] if self._heads else [])

    def _apply_head(self, inputs: Sequence[Tensor]) -> Tensor:
        if isinstance(self._whole, PackedConv):
            return self._whole(*inputs)
        value = apply(self._head, inputs)
        # The tail writes to the value: it must not be a view of what an edge stores.
        shared = self._stages and any(_memory(value) == _memory(x) for x in inputs)
        return value.clone() if shared else value

    def _apply(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The tail; where a stage has an in-place spelling it writes to the value, which is nobody else's."""
        if not isinstance(self._operator, Fused):
            return value
        place = 0
        stages = zip(self._stages, self._operator.counts, self._operator.slots, strict=True)
        for index, (stage, count, slot) in enumerate(stages):
            inputs = list(others[place : place + count])
            place += count
            if index >= self._skip:
                value = apply(stage, [*inputs[:slot], value, *inputs[slot:]], slot)
        return value

    def _fused_activation(self) -> str:
        first = self._stages[0] if self._stages else None
        return "relu" if isinstance(first, Pointwise) and first.function == "relu" else "none"


class PackedConv:
    """A convolution whose weights lie in oneDNN's own order: torch would bring them there in every call.

    The order can depend on the size of the input, and a call with weights in another one is ten times slower: each
    size has weights of its own. The two operators are Inductor's; where a build of torch lacks them, can_pack says no.
    """

    def __init__(self, conv: Conv2d, padding: tuple[int, int], activation: str):
        self._conv, self._activation, self._padding = conv, activation, list(padding)
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        conv, shape = self._conv, tuple(x.shape)
        if shape not in self._packed:
            self._packed[shape] = torch.ops.mkldnn._reorder_convolution_weight(
                conv.weight.contiguous(memory_format=torch.channels_last),
                self._padding,
                self._stride,
                self._dilation,
                conv.groups,
                list(shape),
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed[shape],
            conv.bias,
            self._padding,
            self._stride,
            self._dilation,
            conv.groups,
            self._activation,
            [],
            "",
        )


def can_pack(example: Tensor) -> bool:
    """oneDNN takes this map, and torch has the operators for packed weights."""
    return bool(
        example.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


def _points(rows: Tensor) -> Tensor:
    """(n, C) as n images of one pixel."""
    return rows.view(rows.shape[0], -1, 1, 1)


def _on_taps(conv: Conv2d) -> Conv2d:
    """The convolution on gathered taps: of rows (n, kh * kw * C) where it can be a product, else of kh x kw windows."""
    weight = conv.weight
    if conv.groups == 1:
        weight = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1)
    return Conv2d(weight, conv.bias, (1, 1), (0, 0), (1, 1), conv.groups)


def head_of(operator: Operator) -> Operator:
    return operator.head if isinstance(operator, Fused) else operator


def tail_of(operator: Operator) -> list[Operator]:
    return list(operator.stages[1:]) if isinstance(operator, Fused) else []  # type: ignore[arg-type]


def apply(stage: Operator, inputs: Sequence[Tensor], own: int | None = None) -> Tensor:
    """An operator of single pixels, to the same bits wherever a value lies. Input `own` may be overwritten."""
    if isinstance(stage, OverChannels):
        # Rows are summed one by one; where a dimension lies behind the channels the order depends on the map.
        (x,) = inputs
        rows = stage.rows(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]))
        return rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
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


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def steadily(function: Callable[..., Tensor], *operands: Any) -> Tensor:
    """A function of each value of maps (channels last or rows) and numbers, to the same bits wherever a value lies.

    torch computes exp and its kin by vectors, and what is left over at the end of a thread's share one by one, to other
    bits. Pieces that fill vectors and threads evenly leave nothing over.
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
