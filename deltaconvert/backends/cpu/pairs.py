"""Two convolutions, one after the other; the map between them is made in bands, in memory that all steps share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.chains import Chain, stage_of
from deltaconvert.backends.cpu.convolutions import Chained
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.fastest import fastest
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.native.masks import Spread
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of, stages_of
from deltaconvert.ops.paired import Paired
from deltaconvert.reach import Reach, Window

# Of a band of the map between: DnCNN at 480x360 takes 36 MB less than with the whole map, and is no slower by it.
BAND_BYTES = 8 << 20


class Pairs(Chained):
    """The map between the two is made in bands of lines, in scratch memory that all steps share."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        head = head_of(operator)
        return loops.FOUND and isinstance(head, Paired) and head.window.groups == 1

    def prepare(self) -> None:
        (head, *tail), source = stages_of(self.operator), self.inputs[0].values
        assert isinstance(head, Paired)
        self._channels = head.window.weight.shape[1]
        between = (source.shape[0], self._channels, *source.shape[2:])
        self._first = self._chain(stages_of(head.first), source.shape, between)
        self._second = self._chain([head.window, *tail], between, self.edge.values.shape)
        (window,) = head.window.reaches([between], self.edge.values.shape)
        assert isinstance(window, Window)
        self._window = window
        self._read = Spread(window)  # a window of odd size in its middle is read by the pixels that it reads
        self._high = (window.kernel[0] - 1) * window.dilation[0] + 1
        # From three times as many lines as a window reads on what is moved to the next band does not overlap itself.
        self._lines = max(3 * self._high, BAND_BYTES // (4 * self._channels * source.shape[3]))

    def _chain(self, stages: Sequence[Operator], size: Sequence[int], out_size: Sequence[int]) -> Chain:
        head, *tail = stages
        stage, taken = stage_of(head, tail, [0] * len(tail), [])  # type: ignore[arg-type]
        assert taken == len(tail)
        (window,) = head.reaches([tuple(size)], tuple(out_size))
        return fastest([stage], window, self._scratch)  # type: ignore[arg-type]

    def _compute(self, candidates: Tensor, pixels: Tensor | None, count: int) -> None:
        edge, every = self.edge, self.backend.every
        wanted = every(count) if pixels is None else pixels
        made = every(len(self.inputs[0].rows)) if pixels is None else listed(self._read(candidates))

        def compute(**keep: Any) -> None:
            for band, between, first in self._bands(made, wanted):
                self._second.run(between, band, len(band), [], edge.rows, source_from=first, **keep)

        if self._in_place:
            self._renew(compute, candidates, pixels, count)
            return
        commit = Commit(edge, None)
        for band, between, first in self._bands(made, wanted):
            new = edge.rows.new_empty(len(band), edge.rows.shape[1])
            self._second.run(between, band, len(band), [], new, by_place=True, source_from=first)
            commit.rows(band, new)
        commit.finish(candidates, wanted, count)

    def _bands(self, made: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(some of the wanted pixels, the rows of the map between that they read, the pixel of the first of these
        rows).

        A band begins where the list goes on. Lines that the last band has made as well are moved, not made again.
        """
        (in_height, width), (height, out_width) = self._window.in_size, self._window.out_size
        stride, padding = self._window.stride[0], self._window.padding[0]
        between = self.backend.scratch((self._lines * width, self._channels), torch.float32)
        moved, at, start, done = between.numpy(), 0, 0, 0  # torch would wake its threads to move two lines
        while at < len(wanted):
            stream, y = divmod(int(wanted[at]) // out_width, height)
            y -= y % 2  # a square of pixels lies in one band
            end = min(y + ((self._lines - self._high) // stride + 1) // 2 * 2, height)
            top = max(0, y * stride - padding)
            bottom = min((end - 1) * stride - padding + self._high, in_height)
            first, last = ((stream * in_height + line) * width for line in (top, bottom))
            if first < done:
                moved[: done - first] = moved[first - start : done - start]
            needed = made[_place(made, max(first, done)) : _place(made, last)]
            self._first.run(self.inputs[0].rows, needed, len(needed), [], between, out_from=first)
            start, done = first, last
            stop = _place(wanted, (stream * height + end) * out_width)
            yield wanted[at:stop], between, first
            at = stop


def _place(pixels: Tensor, pixel: int) -> int:
    """The place of a pixel in a sorted list, or where it would be."""
    return int(np.searchsorted(pixels.numpy(), pixel))
