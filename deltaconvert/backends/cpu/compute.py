"""Operators on rows, on windows and on whole maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.elementwise import Elementwise, apply
from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.backends.cpu.layouts import as_column, as_images, as_points, as_rows
from deltaconvert.backends.cpu.packed import Epilogue, PackedConv, absorb
from deltaconvert.layout import apart_from
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused, stages_of


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
        self.epilogue = Epilogue()  # what the head's call does after the convolution
        self._takes = 0  # how many inputs of the tail that epilogue takes
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
        points = [as_points(x) for x in inputs[: self._heads]]
        return self.tail(as_rows(self._whole(*points)), inputs[self._heads :])

    def windows(self, windows: Tensor, tiles: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Only the head: (tiles * window_pixels, C) -> (tiles * tile_pixels, C')."""
        assert self._grid is not None
        if self._on_rows:
            return self._product(windows.view(len(tiles), -1), others)
        count, window, edges = len(tiles), self._grid.window, self._grid.edges
        if self._grid.taps == "strip":
            count, window, edges = 1, (window[0], count * window[1]), (1, count)
        images = as_images(windows, count, window)
        beside = [as_images(other, count, edges) for other in others[: self._takes]]
        return self._grid.crop(as_rows(self._local(images, *beside)), tiles)

    def tail(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The operators after the head, on its rows (n, C'), which may be overwritten."""
        others = others[self._takes :]
        for link in self._links:
            place = as_column if isinstance(link, _Convolution) else as_points
            value = as_rows(link(place(value), [place(other) for other in others[: link.takes]]))
            others = others[link.takes :]
        return value

    def whole(self, values: Sequence[Tensor]) -> Tensor:
        """N C H W, ... -> N C' H' W'."""
        return self.behind(self._whole, values)

    def band(self, values: Sequence[Tensor], above: int, below: int) -> Tensor:
        """As whole, on some rows of each map, with rows of zeros above and below those of the first."""
        first = values[0]
        if above or below:
            first = F.pad(first.permute(0, 2, 3, 1), (0, 0, 0, 0, above, below)).permute(0, 3, 1, 2)
        return self.behind(self._band, [first, *values[1:]])

    def behind(self, head: Callable[..., Tensor], values: Sequence[Tensor]) -> Tensor:
        """As whole, with a given way to compute the head."""
        first = self._heads + self._takes
        value, others = head(*values[:first]), values[first:]
        for link in self._links:
            value, others = link(value, others[: link.takes]), others[link.takes :]
        return value

    def _product(self, rows: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The head as a 1x1 convolution of rows: one image of n x 1 pixels over the same memory."""
        return as_rows(self._local(*map(as_column, (rows, *others[: self._takes]))))

    def _own(self, value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Copy the value if it is a view of an edge's map, because the tail overwrites it."""
        return apart_from(value, inputs) if self._links else value


class _Convolution:
    """A 1x1 convolution in a tail, with its epilogue."""

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


def _on_taps(conv: Conv2d, taps: str) -> Conv2d:
    """The convolution on gathered taps, as Grid lays them out: of rows (n, kh * kw * C), or of windows side by side."""
    if not taps:
        return conv
    weight, step = conv.weight, (1, conv.weight.shape[3])
    if taps == "row":
        weight, step = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1), (1, 1)
    return Conv2d(weight, conv.bias, step, (0, 0), (1, 1), conv.groups)
