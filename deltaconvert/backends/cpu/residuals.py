"""Inverted residuals: of the wide map between 1x1 and depthwise only a few lines of a strip exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from deltaconvert.backends.cpu.chains import Chain, Stage, can_chain, is_depthwise, stage_of
from deltaconvert.backends.cpu.convolutions import Convolutions
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import head_of, stages_of
from deltaconvert.ops.paired import Paired
from deltaconvert.reach import Reach, Window

RING_BYTES = 256 << 10  # for the lines of a strip that a window reads: half of a Zen 3 core's own cache
SHARES = 4  # for each thread
FEWEST_LINES = 8  # of a share: the lines around it are made twice


class Strips(Chain):
    """The first stage reads a window of what `wide` makes of each pixel."""

    in_order = True

    def __init__(self, wide: Stage, stages: Sequence[Stage], window: Window, scratch: Callable[[int], int]):
        from deltaconvert.backends.cpu.native import strips

        self._strips = strips
        channels, breadth = len(wide.conv.weight), window.out_size[1]
        (high, broad), (_, stride) = window.kernel, window.stride
        high, broad = (high - 1) * window.dilation[0] + 1, (broad - 1) * window.dilation[1] + 1
        row = channels * wide.conv.weight.itemsize
        room = (RING_BYTES // (row * high) - broad) // stride + 1
        count = -(-breadth // max(room, 2 * strips.ROWS))
        blocks = -(-breadth // (count * strips.ROWS))
        super().__init__(stages, window, scratch, blocks)
        strip, table = blocks * strips.ROWS, np.array(self._described(wide), dtype=np.int64)
        columns = (strip - 1) * stride + broad
        self._own = np.zeros(strips.FIELDS, dtype=np.int64)
        self._own[strips.CHAIN], self._own[strips.WIDE] = self._job.ctypes.data, self._address(table)
        self._own[strips.STRIP], self._own[strips.STRIPS] = strip, -(-breadth // strip)
        self._own[strips.RING_LINES], self._own[strips.RING_COLUMNS] = high, columns
        # As `_room_of` in native/strips.py cuts it up, before what the stages behind take: a ring, numbers of 8 bytes.
        numbers = 4 * columns + 2 * strips.ROWS + window.kernel[0] * window.kernel[1]
        size = row * high * columns + 8 * numbers
        size += int(table[j.WIDENED] * table[j.DEPTH]) * 4 * (columns + strips.ROWS)
        self._job[j.SCRATCH_BYTES] += -(-size // 64) * 64

    def _share(self, threads: int, pixels: Tensor | None, count: int) -> None:
        s, own, breadth = self._strips, self._own, int(self._job[j.OUT_BREADTH])
        first, last = (0, count - 1) if pixels is None else (int(pixels[0]), int(pixels[-1]))
        first, last = first // breadth, last // breadth
        strips, lines = int(own[s.STRIPS]), last - first + 1
        bands = max(1, min(threads * -(-SHARES // strips), lines // FEWEST_LINES))
        band = -(-lines // bands)
        own[s.BAND], own[s.FIRST_LINE], own[s.LAST_LINE] = band, first, last
        s.share_strips(-(-lines // band) * strips, 1, own.ctypes.data)


class Residuals(Convolutions):
    """A 1x1 convolution, the depthwise one that is its only reader, and their tail."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        head = head_of(operator)
        if not (loops.FOUND and isinstance(head, Paired) and is_depthwise(head.window)):
            return False
        convs = [s for s in (head_of(head.first), head.window, *stages_of(operator)) if isinstance(s, Conv2d)]
        return can_chain(convs, inputs[0].values.dtype) and tail_is_free(operator, reaches, inputs)

    def _stages(self) -> list[Operator]:
        head, *tail = stages_of(self.operator)
        assert isinstance(head, Paired)
        return [head.window, *tail]

    def _first_chain(self, stages: Sequence[Stage]) -> Chain:
        head, window = head_of(self.operator), self._window
        assert isinstance(head, Paired) and window is not None
        conv, *tail = stages_of(head.first)
        wide, taken = stage_of(conv, tail, [0] * len(tail), [])  # type: ignore[arg-type]
        assert taken == len(tail)
        return Strips(wide, stages, window, self._scratch)
