"""Operators on rows, on windows and on whole maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.backends.cpu.packed import Epilogue, PackedConv, absorb
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.ops.over_channels import OverChannels
from deltaconvert.ops.pointwise import Pointwise

# Functions of torch that round once, or not at all, and so to the same bits by vectors and one by one.
EXACT = (
    *("relu", "relu6", "leaky_relu", "hardtanh", "clamp", "abs", "neg", "square", "sqrt", "reciprocal"),
    *("threshold", "hardshrink", "floor", "ceil", "round", "trunc", "sign", "nan_to_num", "isnan"),
    *("logical_not", "bitwise_not", "cast"),
)
# Those of arithmetic that do not.
ROUNDED = ("pow", "floor_divide", "remainder", "fmod")
GRAIN = 32768  # values that torch gives to one thread
VECTOR = 64  # values of two of the widest vectors, at the smallest dtype


class Compute:
    """An operator on rows, on windows and on whole maps, its convolutions packed for oneDNN.

    widths: the channels of each input that is a whole map; None for a gate. orders: see PackedConv.
    """

    def __init__(
        self,
        operator: Operator,
        widths: Sequence[int | None],
        orders: dict[Any, bytes],
        grid: Grid | None = None,
    ):
        self._grid = grid
        head, *tail = stages_of(operator)
        self._heads, counts, slots = len(widths), [], []
        if isinstance(operator, Fused):
            self._heads, counts, slots = operator.head_inputs, operator.counts, operator.slots
        self.epilogue = Epilogue()  # what the head's own call does after it
        self._takes = 0  # the inputs of the tail that the head's own epilogue takes
        self._local: Callable[..., Tensor] = head if grid is None else head.on_windows
        self._whole: Callable[..., Tensor] = lambda *inputs: self._own(apply(head, inputs), inputs)
        taps = "" if grid is None else grid.taps
        self._band = self._whole
        # A 1x1 convolution of rows: the head itself, or the head on rows of taps.
        self._on_rows = isinstance(head, Conv2d) and (grid is None or taps == "row")
        first = 0
        if isinstance(head, Conv2d):
            epilogue, first = absorb(head, tail, counts, widths[self._heads :])
            self.epilogue = epilogue
            self._whole = PackedConv(head, head.padding, epilogue, orders)
            self._band = PackedConv(head, (0, head.padding[1]), epilogue, orders)
            self._local = PackedConv(_on_taps(head, taps), (0, 0), epilogue, orders)
            self._takes = sum(counts[:first])
        self._links = _links(
            tail[first:], counts[first:], slots[first:], widths[self._heads + self._takes :], orders
        )

    def rows(self, inputs: Sequence[Tensor]) -> Tensor:
        """(n, C), ... -> (n, C')."""
        if self._on_rows:
            return self.tail(self._product(inputs[0], inputs[1:]), inputs[1:])
        points = [_points(x) for x in inputs[: self._heads]]
        return self.tail(_rows(self._whole(*points)), inputs[self._heads :])

    def windows(self, windows: Tensor, tiles: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The head alone: (tiles * window_pixels, C) -> (tiles * tile_pixels, C')."""
        assert self._grid is not None
        if self._on_rows:
            return self._product(windows.view(len(tiles), -1), others)
        count, window, edges = len(tiles), self._grid.window, self._grid.edges
        if self._grid.taps == "strip":
            count, window, edges = 1, (window[0], count * window[1]), (1, count)
        images = _images(windows, count, window)
        beside = [_images(other, count, edges) for other in others[: self._takes]]
        return self._grid.crop(_rows(self._local(images, *beside)), tiles)

    def tail(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """What comes after the head, on its rows (n, C') in memory of their own."""
        others = others[self._takes :]
        for link in self._links:
            place = _column if isinstance(link, _Convolution) else _points
            value = _rows(link(place(value), [place(other) for other in others[: link.takes]]))
            others = others[link.takes :]
        return value

    def whole(self, values: Sequence[Tensor]) -> Tensor:
        """N C H W, ... -> N C' H' W'."""
        return self.behind(self._whole, values)

    def band(self, values: Sequence[Tensor], above: int, below: int) -> Tensor:
        """As whole, on some rows of each map; so many rows of zeros belong above and below those of the first."""
        first = values[0]
        if above or below:
            first = F.pad(first.permute(0, 2, 3, 1), (0, 0, 0, 0, above, below)).permute(0, 3, 1, 2)
        return self.behind(self._band, [first, *values[1:]])

    def behind(self, head: Callable[..., Tensor], values: Sequence[Tensor]) -> Tensor:
        """As whole, with another way to compute the head."""
        first = self._heads + self._takes
        value, others = head(*values[:first]), values[first:]
        for link in self._links:
            value, others = link(value, others[: link.takes]), others[link.takes :]
        return value

    def _product(self, rows: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The head as a 1x1 convolution of rows: one image of n x 1 pixels over the same memory."""
        return _rows(self._local(*map(_column, (rows, *others[: self._takes]))))

    def _own(self, value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The tail writes to the value: it must not be a view of what an edge stores."""
        shared = self._links and any(_memory(value) == _memory(x) for x in inputs)
        return value.clone() if shared else value


class Elementwise:
    """A stage of a tail. Where it has an in-place spelling it writes to the value, which is nobody else's."""

    in_order = False

    def __init__(self, stage: Operator, takes: int, slot: int):
        self._stage, self.takes, self._slot = stage, takes, slot

    def __call__(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        return apply(self._stage, [*others[: self._slot], value, *others[self._slot :]], self._slot)

    def rows(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The same of rows (n, C)."""
        return _rows(self(_points(value), [_points(other) for other in others]))


class _Convolution:
    """A 1x1 convolution in a tail, with what oneDNN does in its epilogue."""

    def __init__(self, conv: Conv2d, takes: int, epilogue: Epilogue, orders: dict[Any, bytes]):
        self.takes, self._packed = takes, PackedConv(conv, (0, 0), epilogue, orders)

    def __call__(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        return self._packed(value, *others)


def _links(
    stages: Sequence[Operator],
    counts: Sequence[int],
    slots: Sequence[int],
    widths: Sequence[int | None],
    orders: dict[Any, bytes],
) -> list[Elementwise | _Convolution]:
    links: list[Elementwise | _Convolution] = []
    at = place = 0
    while at < len(stages):
        stage = stages[at]
        if isinstance(stage, Conv2d):
            epilogue, more = absorb(stage, stages[at + 1 :], counts[at + 1 :], widths[place:])
            takes = sum(counts[at : at + 1 + more])
            links.append(_Convolution(stage, takes, epilogue, orders))
            at += 1 + more
        else:
            takes = counts[at]
            links.append(Elementwise(stage, takes, slots[at]))
            at += 1
        place += takes
    return links


def _points(rows: Tensor) -> Tensor:
    """(n, C) as n images of one pixel."""
    return rows.view(rows.shape[0], -1, 1, 1)


def _column(rows: Tensor) -> Tensor:
    """(n, C) as one image of n x 1 pixels."""
    return rows.view(1, rows.shape[0], 1, -1).permute(0, 3, 1, 2)


def _images(rows: Tensor, count: int, size: tuple[int, ...]) -> Tensor:
    """(count * h * w, C) as `count` images of h x w pixels."""
    return rows.view(count, *size, -1).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    """N C H W -> (N * H * W, C)."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _on_taps(conv: Conv2d, taps: str) -> Conv2d:
    """The convolution on gathered taps, as Grid lays them out: of rows (n, kh * kw * C), or of windows side by side."""
    if not taps:
        return conv
    weight, step = conv.weight, (1, conv.weight.shape[3])
    if taps == "row":
        weight, step = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1), (1, 1)
    return Conv2d(weight, conv.bias, step, (0, 0), (1, 1), conv.groups)


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
