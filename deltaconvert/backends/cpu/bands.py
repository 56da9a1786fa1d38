"""The dense way of a step: the whole map at once, or in bands that are stored one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.sparse import Sparse
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import head_of, stages_of
from deltaconvert.reach import Everything, Pixel, Reach, Window

# The C library gives blocks above 32 MB back to the system, and the next frame pages them in again. Bands stay in the
# cache until they are stored, but oneDNN has to set itself up for each. 16->96 channels at 360x640: 55 ms whole and 24
# in bands on Zen 4, 56 and 38 on Zen 3.
BAND_BYTES = 8 << 20  # of a band's output
# How long bands may take, compared with the whole map. A layer that is measured alone finds the memory that it freed a
# moment ago, in a frame it does not: 64->64 with 3x3 at 360x480 takes 57 to 84 ms whole and 47 in bands, alone 46 both
# (Xeon).
GAIN = 1.1


class Computing(Sparse):
    """A step with a Compute: pixel lists and tiles for few candidates, the whole map or bands of it for many."""

    _bands: Bands | None = None

    def bind(self, compute: Compute) -> None:
        self._compute = compute

    def settle(self, notes: dict[str, Any]) -> None:
        super().settle(notes)
        self._bands = self._in_bands() if notes.get("bands") else None

    def _dense_way(self, every: Tensor) -> dict[str, Any]:
        whole = super()._dense_way(every)
        large = self._row_bytes() * self.edge.values.shape[2] >= 2 * BAND_BYTES
        stores_all = self.edge.threshold is None and not self.edge.keeps_others
        self._bands = self._in_bands() if large and stores_all else None
        if self._bands is None:
            return whole
        banded = super()._dense_way(every) | {"bands": True}
        self._bands = None
        return banded if banded["dense_seconds"] < GAIN * whole["dense_seconds"] else whole

    def _in_bands(self) -> Bands | None:
        convolves = isinstance(head_of(self.operator), Conv2d) or isinstance(self.reaches[0], Pixel)
        height = max(1, BAND_BYTES // self._row_bytes())
        return Bands(self._compute, self.reaches, self.edge, height) if convolves else None

    def _row_bytes(self) -> int:
        """Bytes that are made for a row of the output, in the widest map on the way."""
        _, channels, _, width = self.edge.values.shape
        tail = stages_of(self.operator)[1:]
        widest = max([channels, *(int(s.weight.shape[0]) for s in tail if isinstance(s, Conv2d))])
        return int(widest * width * self.inputs[0].values.element_size())

    def _compute_all(self, candidates: Tensor) -> None:
        if self._bands is None or self.edge.threshold is not None:
            super()._compute_all(candidates)
        else:
            self._bands.run([source.values for source in self.inputs])
            self.edge.mark(candidates, self.edge.pixel_count)

    def _whole(self, maps: Sequence[Tensor]) -> Tensor:
        return self._compute.whole(maps)


class Bands:
    """Horizontal bands of a map. All have the same height, so that oneDNN sets itself up once: the last starts further
    up."""

    def __init__(self, compute: Compute, reaches: Sequence[Reach], edge: Edge, height: int):
        self._compute, self._reaches, self._edge = compute, reaches, edge
        self._height = min(height, edge.values.shape[2])
        first = reaches[0]
        self._kernel, self._stride, self._padding, self._dilation = 1, 1, 0, 1
        if isinstance(first, Window):
            self._kernel, self._stride = first.kernel[0], first.stride[0]
            self._padding, self._dilation = first.padding[0], first.dilation[0]

    def run(self, inputs: Sequence[Tensor]) -> None:
        out = self._edge.values
        for stream in range(out.shape[0]):
            own = slice(stream, stream + 1)
            for top in range(0, out.shape[2], self._height):
                start = min(top, out.shape[2] - self._height)
                end = start + self._height
                beside = [
                    source[own] if isinstance(reach, Everything) else source[own, :, start:end]
                    for source, reach in zip(inputs[1:], self._reaches[1:], strict=True)
                ]
                first, above, below = self._rows(inputs[0][own], start)
                out[own, :, start:end] = self._compute.band([first, *beside], above, below)

    def _rows(self, source: Tensor, start: int) -> tuple[Tensor, int, int]:
        """The rows that a band reads, and how many rows of padding are above and below."""
        first = start * self._stride - self._padding
        end = first + (self._height - 1) * self._stride + self._dilation * (self._kernel - 1) + 1
        above, below = max(0, -first), max(0, end - source.shape[2])
        return source[:, :, max(0, first) : end - below], above, below
