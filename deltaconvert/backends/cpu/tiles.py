"""Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.compute import Compute, head_of
from deltaconvert.backends.cpu.edges import Commit, Edge
from deltaconvert.backends.cpu.steps import CHUNK_BYTES, CHUNK_ROWS, chunks, is_pointlike
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Reach, Window

# A tile's edge, largest first that fits the map. Measured on 2 Zen 4 cores (ResNet-50, 720p, box of 5 %): edge 4
# computes 1.2 times the candidates at 1.1 to 1.4 times oneDNN's dense cost a pixel; 8 computes 1.5 times, 2 costs 1.7.
TILE = 4


class Tiles(Computing):
    """Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        first, head = reaches[0], head_of(operator)
        windowed = isinstance(first, Window) and type(head).on_windows is not Operator.on_windows
        return windowed and operator.position_free and all(map(is_pointlike, reaches[1:], inputs[1:]))

    def prepare(self) -> None:
        operator, reaches = self.operator, self.reaches
        assert isinstance(reaches[0], Window)
        # The box around dilated taps is mostly holes: there a tile is one pixel, and its window just the taps.
        dilated = isinstance(head_of(operator), Conv2d) and max(reaches[0].dilation) > 1
        self._tile_by(1 if dilated else TILE)

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
        largest = 1 << max(3, min(most, CHUNK_BYTES // bytes_each).bit_length() - 1)
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
