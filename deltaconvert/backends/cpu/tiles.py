"""Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.chunks import CHUNK_ROWS, chunks, sizes_below
from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Commit, Edge
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import head_of
from deltaconvert.reach import Reach, Window

# How a list of pixels can be computed: (size of a tile, layout of the taps if a tile is one pixel; see Grid). Tiles
# have least to gather, but compute some pixels in vain. A row of taps is the fastest matrix product. A strip keeps the
# order in which the dense operator sums, so that this can take over where many pixels change. 256->256 3x3 on two Zen
# 3 cores: tiles 85 GMAC/s, a row 75, a strip 60, the dense operator 80. Below 128 channels wide tiles are tried as
# well, which fill oneDNN's registers better: 64->64 on one Zen 3 core runs at 30 GMAC/s in tiles of 4x4, at 37 in
# 3x12, 34 in 6x6, 37 in 12x12.
Way = tuple[tuple[int, int], str]
TILES, WIDE, ROW, STRIP = ((4, 4), ""), ((3, 12), ""), ((1, 1), "row"), ((1, 1), "strip")
TILES_BYTES = 4 << 20
# From so many channels on taps are tried as well; below, gathering nine of them costs more than tiles waste.
TAPS_FROM_CHANNELS = 128
# Bytes that a product reads for a chunk. With few rows it waits for its weights: ResNet-50 at 720p, a box of 5 %, takes
# 257 ms with 2 MB of taps, 206 with 8, 220 with 16 (Zen 4).
PRODUCT_BYTES = 8 << 20
PATCH = 0.1  # share of the map that changes on trial, in one square: tiles waste a border around it
NEVER_DENSE = 1.5  # factor on the cost of a way that the dense operator can never replace


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
        self._product = isinstance(head, Conv2d) and head.groups == 1
        many = self.inputs[0].rows.shape[1] >= TAPS_FROM_CHANNELS
        self._ways = [TILES]
        if self._product:
            self._ways += [STRIP, ROW] if many else [WIDE]
        if isinstance(head, Conv2d) and max(window.dilation) > 1:
            self._ways = [STRIP]  # the box around dilated taps is mostly unused
        self._fill = self.operator.fill
        self._compute_by(self._ways[0])

    def _compute_by(self, way: Way) -> None:
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
            *way,
        )
        bytes_each = self._grid.window_pixels * source.shape[1] * source.element_size()
        most = CHUNK_ROWS // self._grid.tile_pixels
        room = PRODUCT_BYTES if self._product else TILES_BYTES
        largest = 1 << max(3, min(most, room // bytes_each).bit_length() - 1)
        # Never a single tile: torch computes a batch of one in another way, with other bits.
        self.sizes = sizes_below(largest, 2, self._grid.tiles)
        self.backwards = False if self._grid.overlaps else None
        self.bind(Compute(self.operator, self._widths(), self.backend.orders, self._grid))

    def settle(self, notes: dict[str, Any]) -> None:
        if notes:
            self._compute_by(notes["way"])
        super().settle(notes)

    def _compare(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        for way in self._ways:
            self._compute_by(way)
            found.append(super()._compare() | {"way": way})
        if not any(notes["steady"] for notes in found):
            # Tiles that share pixels disagree about them; tiles of one pixel share none.
            way = STRIP if isinstance(head_of(self.operator), Conv2d) else ((1, 1), "")
            self._compute_by(way)
            found.append(super()._compare() | {"way": way})
        best = min((notes for notes in found if notes["steady"]), key=self._cost)
        self._compute_by(best["way"])
        return best

    def _cost(self, notes: dict[str, Any]) -> float:
        """The cost of a candidate, from what a settling run found."""
        edge = max(1.0, (PATCH * self.edge.pixel_count) ** 0.5)
        height, width = notes["way"][0]
        waste = (edge + height - 1) / edge * (edge + width - 1) / edge
        return notes["seconds"] * waste * (NEVER_DENSE if notes["dense_from"] > 1 else 1.0)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        tiles = self._grid.touched(candidates, pixels)
        if self.backwards:
            tiles = tiles.flip(0)
        if len(tiles) * self._grid.tile_pixels >= self.dense_from * self.edge.pixel_count:
            return False
        source = self.inputs[0]
        commit = Commit(self.edge, None if self._grid.tile_pixels == 1 else candidates)
        for chunk in chunks(tiles, self.sizes):
            windows = self.backend.scratch(
                (len(chunk) * self._grid.window_pixels, source.rows.shape[1]), source.rows.dtype
            )
            self._grid.gather(source.rows, chunk, self._fill, windows)
            places = self._grid.places(chunk)
            beside = self._taken_beside(places)
            value = self._placed(self._compute.windows(windows, chunk, beside), places)
            commit.rows(places, self._compute.tail(value, beside))
        commit.finish(candidates, pixels, min(len(tiles) * self._grid.tile_pixels, self.edge.pixel_count))
        return True

    def _placed(self, value: Tensor, places: Tensor) -> Tensor:
        """What the head still has to do that depends on the place of a pixel."""
        return value
