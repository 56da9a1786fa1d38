"""The tiles of a map and the windows that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deltaconvert.backends.cpu.native import loops


class Grid:
    """The tiles of one output map, and the windows of input pixels that they read.

    taps: "" if a window is the box that a tile reads. Otherwise a tile is one pixel, and its window holds only the
    taps: "row" puts windows one after the other, "strip" side by side, in an image as high as the kernel.

    Tiles never reach over the map's edge: the last one of a row or column starts further in instead, and computes some
    pixels a second time, to the same bits.
    """

    def __init__(
        self,
        streams: int,
        in_size: tuple[int, int],
        out_size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        transposed: bool,
        tile: tuple[int, int],
        taps: str,
    ):
        self._streams, self._out_size, self.taps = streams, out_size, taps
        self.edges = min(tile[0], out_size[0]), min(tile[1], out_size[1])
        self.overlaps = any(size % edge for size, edge in zip(out_size, self.edges, strict=True))
        self._counts = -(-out_size[0] // self.edges[0]), -(-out_size[1] // self.edges[1])
        down, across = (
            _transposed_axis(*each) if transposed else _axis(*each, only_taps=bool(taps))
            for each in zip(out_size, self.edges, kernel, stride, padding, dilation, strict=True)
        )
        self.window = down.reads.shape[1], across.reads.shape[1]
        self.window_pixels = self.window[0] * self.window[1]
        self.tile_pixels = self.edges[0] * self.edges[1]
        self._result_pixels = down.makes * across.makes
        self._crop = None
        if (down.makes, across.makes) != self.edges:
            self._crop = _pairs(down.keeps * across.makes, across.keeps).repeat(streams, 1)
        height, width = in_size
        reads = _pairs(down.reads.clamp(0, height - 1) * width, across.reads.clamp(0, width - 1))
        self._reads = _in_each(streams, reads, height * width).to(torch.int32)
        above, beside = _outside(down.reads, height), _outside(across.reads, width)
        self._outside = _pairs(above, beside, torch.logical_or).repeat(streams, 1)
        self._at_border = self._outside.any(1)
        writes = _pairs(down.writes * out_size[1], across.writes)
        self._writes = _in_each(streams, writes, out_size[0] * out_size[1])
        self._padded = torch.zeros(
            streams, self._counts[0] * self.edges[0], self._counts[1] * self.edges[1], dtype=torch.bool
        )

    @property
    def tiles(self) -> int:
        """The number of tiles in all streams."""
        return len(self._writes)

    def touched(self, mask: Tensor, pixels: Tensor | None = None) -> Tensor:
        """int64, the tiles in which `mask` (N, 1, H, W) has a pixel. pixels: their list if it is known."""
        height, width = self._out_size
        if pixels is not None and self.tile_pixels == 1:
            return pixels
        if pixels is not None and loops.FOUND:
            return loops.touched(pixels, self._out_size, self.edges, self._counts, self._streams)
        if self.tile_pixels == 1:
            return mask.view(-1).nonzero().view(-1)
        self._padded[:, :height, :width] = mask[:, 0]
        lines = self._padded.view(self._streams, self._counts[0], self.edges[0], -1)
        if self.edges == (4, 4):
            found = lines.view(torch.int32).amax(2)  # four truth values are one integer, never a negative one
        else:
            found = lines.any(2).view(self._streams, self._counts[0], self._counts[1], self.edges[1]).any(3)
        return found.view(-1).nonzero().view(-1)

    def gather(self, rows: Tensor, tiles: Tensor, fill: float, windows: Tensor) -> None:
        """Copy the windows of `tiles` into `windows` (tiles * window_pixels, C); outside the map lies `fill`."""
        torch.index_select(rows, 0, self._laid_out(self._reads.index_select(0, tiles)), out=windows)
        self.fill_outside(windows, tiles, fill)

    def fill_outside(self, windows: Tensor, tiles: Tensor, fill: float) -> None:
        """Put `fill` where the windows of `tiles` reach over the map's edge."""
        if bool(self._at_border.index_select(0, tiles).any()):
            outside = self._laid_out(self._outside.index_select(0, tiles)).nonzero().view(-1)
            windows.index_fill_(0, outside, fill)

    def _laid_out(self, table: Tensor) -> Tensor:
        """(tiles, window_pixels) -> one value after the other, as they lie in memory."""
        if self.taps == "strip":
            table = table.view(-1, *self.window).transpose(0, 1)
        return table.reshape(-1)

    def crop(self, rows: Tensor, tiles: Tensor) -> Tensor:
        """The operator's result for the windows -> the pixels of `tiles`; a transposed window gives more than these."""
        if self._crop is None:
            return rows
        first = torch.arange(len(tiles)).view(-1, 1) * self._result_pixels
        return rows.index_select(0, (first + self._crop.index_select(0, tiles)).view(-1))

    def places(self, tiles: Tensor) -> Tensor:
        """int64, the output pixels of `tiles`, one tile after the other."""
        return self._writes.index_select(0, tiles).view(-1)


class _Axis(NamedTuple):
    """The tiles along one axis.

    reads (tiles, window): what the windows read, which may be outside of the map.
    makes: how many pixels the operator makes of a window.
    keeps, writes (tiles, edge): which of them belong to the tile, and where they go.
    """

    reads: Tensor
    makes: int
    keeps: Tensor
    writes: Tensor


def _axis(
    size: int, edge: int, kernel: int, stride: int, padding: int, dilation: int, *, only_taps: bool
) -> _Axis:
    starts, step = _starts(size, edge), dilation if only_taps else 1
    length = kernel if only_taps else (edge - 1) * stride + dilation * (kernel - 1) + 1
    reads = (starts * stride - padding).view(-1, 1) + torch.arange(length) * step
    keeps = torch.arange(edge).expand(len(starts), edge)
    return _Axis(reads, edge, keeps, starts.view(-1, 1) + torch.arange(edge))


def _transposed_axis(size: int, edge: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
    """Input i writes outputs i * stride - padding + k * dilation, k dilated up to `reach`: `first` is the first input
    that can reach the tile, or the last one before it where stride leaves holes."""
    starts, reach = _starts(size, edge), dilation * (kernel - 1)
    before = starts + padding
    first = torch.minimum(-((reach - before) // stride), before // stride)
    skip = before - first * stride
    length = -(-(int(skip.max()) + edge - 1 - reach) // stride) + 1
    length = max(length, int(((before + edge - 1) // stride - first).max()) + 1)
    reads = first.view(-1, 1) + torch.arange(length)
    keeps, writes = (each.view(-1, 1) + torch.arange(edge) for each in (skip, starts))
    return _Axis(reads, (length - 1) * stride + reach + 1, keeps, writes)


def _starts(size: int, edge: int) -> Tensor:
    """The first pixel of each tile; the last tile starts further in if less than a whole one is left."""
    return (torch.arange(-(-size // edge)) * edge).clamp(max=size - edge)


def _outside(places: Tensor, size: int) -> Tensor:
    return (places < 0) | (places >= size)


def _pairs(rows: Tensor, columns: Tensor, combine: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Tensor:
    """(tiles down, a), (tiles across, b) -> (tiles, a * b): each row of each tile with each of its columns."""
    both = combine(rows[:, None, :, None], columns[None, :, None, :])
    return both.reshape(-1, rows.shape[1] * columns.shape[1])


def _in_each(streams: int, places: Tensor, plane: int) -> Tensor:
    """Places in one map of `plane` pixels (tiles, n) as those in the maps of all streams (streams * tiles, n)."""
    return (torch.arange(streams).view(-1, 1, 1) * plane + places).view(-1, places.shape[1])
