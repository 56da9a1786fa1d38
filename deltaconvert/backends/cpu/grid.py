"""The tiles of a map and the windows that they read."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.backends.cpu import loops


class Grid:
    """The tiles of one output map, and the windows of input pixels that they read.

    taps: "" where a window is the box that a tile reads; else a tile is one pixel and its window holds the taps alone:
    "row" lays them out one window after the other, "strip" side by side, in an image as high as the kernel.

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
        axes = []
        for axis in (0, 1):
            count, edge = self._counts[axis], self.edges[axis]
            starts = (torch.arange(count) * edge).clamp(max=out_size[axis] - edge)
            reach = dilation[axis] * (kernel[axis] - 1)
            if transposed:
                # Input i writes outputs i * stride - padding + k * dilation, k dilated up to `reach`: `first` is the
                # first input that can reach the tile, or the last one before it where stride leaves holes.
                before = starts + padding[axis]
                first = torch.minimum(-((reach - before) // stride[axis]), before // stride[axis])
                skip = before - first * stride[axis]
                length = -(-(int(skip.max()) + edge - 1 - reach) // stride[axis]) + 1
                length = max(length, int(((before + edge - 1) // stride[axis] - first).max()) + 1)
                result = (length - 1) * stride[axis] + reach + 1
            else:
                first = starts * stride[axis] - padding[axis]
                length = kernel[axis] if taps else (edge - 1) * stride[axis] + reach + 1
                skip, result = torch.zeros_like(starts), edge
            reads = first.view(-1, 1) + torch.arange(length) * (dilation[axis] if taps else 1)
            axes.append((starts, reads, skip, result))
        (ys, reads_y, skip_y, result_y), (xs, reads_x, skip_x, result_x) = axes
        self.window = (reads_y.shape[1], reads_x.shape[1])
        self.window_pixels = self.window[0] * self.window[1]
        self.tile_pixels = self.edges[0] * self.edges[1]
        self._crop = None
        if (result_y, result_x) != self.edges:
            self._result_pixels = result_y * result_x
            y = skip_y.view(-1, 1, 1, 1) + torch.arange(self.edges[0]).view(1, 1, -1, 1)
            x = skip_x.view(1, -1, 1, 1) + torch.arange(self.edges[1]).view(1, 1, 1, -1)
            self._crop = (y * result_x + x).view(-1, self.tile_pixels).repeat(streams, 1)
        height, width = in_size
        streams_first = torch.arange(streams).view(-1, 1, 1, 1, 1)
        outside_y = (reads_y < 0) | (reads_y >= height)
        outside_x = (reads_x < 0) | (reads_x >= width)
        rows = (streams_first * height + reads_y.clamp(0, height - 1).view(-1, 1, self.window[0], 1)) * width
        self._reads = (
            (rows + reads_x.clamp(0, width - 1).view(1, -1, 1, self.window[1]))
            .to(torch.int32)
            .reshape(-1, self.window_pixels)
        )
        outside = outside_y.view(-1, 1, self.window[0], 1) | outside_x.view(1, -1, 1, self.window[1])
        self._outside = outside.expand(streams, *outside.shape).reshape(-1, self.window_pixels)
        self._at_border = self._outside.any(1)
        tile_y = ys.view(-1, 1, 1, 1) + torch.arange(self.edges[0]).view(1, 1, -1, 1)
        tile_x = xs.view(1, -1, 1, 1) + torch.arange(self.edges[1]).view(1, 1, 1, -1)
        self._writes = ((streams_first * out_size[0] + tile_y) * out_size[1] + tile_x).reshape(
            -1, self.tile_pixels
        )
        self._padded = torch.zeros(
            streams, self._counts[0] * self.edges[0], self._counts[1] * self.edges[1], dtype=torch.bool
        )

    @property
    def tiles(self) -> int:
        """Of all streams."""
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
        """What the operator made of the windows -> the pixels of `tiles`; a transposed window makes more than those."""
        if self._crop is None:
            return rows
        first = torch.arange(len(tiles)).view(-1, 1) * self._result_pixels
        return rows.index_select(0, (first + self._crop.index_select(0, tiles)).view(-1))

    def places(self, tiles: Tensor) -> Tensor:
        """int64, the output pixels of `tiles`, one tile after the other."""
        return self._writes.index_select(0, tiles).view(-1)
