"""Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Commit, Edge
from deltaconvert.backends.cpu.steps import CHUNK_ROWS, chunks, tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import head_of
from deltaconvert.reach import Reach, Window

# A tile's edge, where it is more than a pixel: where an output pixel costs little beside gathering what it reads, tiles
# save more of the gathering than they compute in vain (1.1 to 1.4 times the candidates).
TILE, TILES_BYTES = 4, 4 << 20
# From so many channels on a pixel and its taps cost what a pixel of a tile costs. 2 Zen 4 cores, 3x3: DnCNN's 64
# channels take 134 ms by tiles and 136 to 178 by taps (480x360, a box of 5 %), ResNet-50's 128 to 512 gain.
TAPS_FROM_CHANNELS = 128
# A chunk of taps. Few rows leave the product waiting for its weights: ResNet-50 at 720p, a box of 5 %, takes 257 ms at
# 2 MB, 206 at 8, 220 at 16.
TAPS_BYTES = 8 << 20


class Tiles(Computing):
    """Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        first, head = reaches[0], head_of(operator)
        windowed = isinstance(first, Window) and type(head).on_windows is not Operator.on_windows
        return windowed and head.position_free and tail_is_free(operator, reaches, inputs)

    def prepare(self) -> None:
        head, window = head_of(self.operator), self.reaches[0]
        assert isinstance(window, Window)
        # A tile of one pixel reads its taps alone; the box around dilated ones is mostly holes.
        product = isinstance(head, Conv2d) and head.groups == 1
        many = self.inputs[0].rows.shape[1] >= TAPS_FROM_CHANNELS
        dilated = isinstance(head, Conv2d) and max(window.dilation) > 1
        self._tile_by(1 if dilated or (product and many) else TILE)

    def _tile_by(self, edge: int) -> None:
        source, window = self.inputs[0].values, self.reaches[0]
        assert isinstance(window, Window)
        self._grid = self.backend.grid(
            source.shape[0],
            window.in_size,
            window.out_size,
            window.kernel,
            window.stride,
            window.padding,
            window.dilation,
            window.transposed,
            edge,
            edge == 1 and isinstance(head_of(self.operator), Conv2d),
        )
        bytes_each = self._grid.window_pixels * source.shape[1] * source.element_size()
        most = CHUNK_ROWS // self._grid.tile_pixels
        room = TAPS_BYTES if self._grid.tile_pixels == 1 else TILES_BYTES
        largest = 1 << max(3, min(most, room // bytes_each).bit_length() - 1)
        # Never one alone: a batch of one takes another way through torch, to other bits.
        self.sizes = tuple(dict.fromkeys((largest, max(2, largest // 8), max(2, largest // 64))))
        self.bind(Compute(self.operator, self._widths(), self._grid))

    def settle(self, notes: dict[str, Any]) -> None:
        if notes.get("tile"):
            self._tile_by(notes["tile"])
        super().settle(notes)

    def _compare(self) -> dict[str, Any]:
        found = super()._compare()
        if found["steady"] or self._grid.tile_pixels == 1:
            return found
        self._tile_by(1)
        return super()._compare() | {"tile": 1}

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        tiles = self._grid.touched(candidates)
        if self.backwards:
            tiles = tiles.flip(0)
        if len(tiles) * self._grid.tile_pixels >= self.dense_from * self.edge.pixel_count:
            return False
        source = self.inputs[0]
        commit = Commit(self.edge, candidates)
        for chunk in chunks(tiles, self.sizes):
            windows = self.backend.scratch(
                (len(chunk) * self._grid.window_pixels, source.rows.shape[1]), source.rows.dtype
            )
            self._grid.gather(source.rows, chunk, self.operator.fill, windows)
            places = self._grid.places(chunk)
            beside = self._taken_beside(places)
            value = self._placed(self._compute.windows(windows, chunk, beside), places)
            commit.rows(places, self._compute.tail(value, beside))
        commit.finish(candidates, None, min(len(tiles) * self._grid.tile_pixels, self.edge.pixel_count))
        return True

    def _placed(self, value: Tensor, places: Tensor) -> Tensor:
        """What the head still has to do that depends on where a pixel lies."""
        return value
