"""A share of an inverted residual: 1x1 to many channels, a depthwise window over those, and the stages behind it.

A strip of columns is walked down line by line. The lines of the wide map that the window reads lie in a ring as large
as the cache near the core: that map is never stored. Columns that two strips read are made twice.

It imports numba, so it is imported where strips are made.
"""

from __future__ import annotations

from typing import Any

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native import shares as s
from deltaconvert.backends.cpu.native.machine_code import shared
from deltaconvert.backends.cpu.native.memory import floats, in_share, ints
from deltaconvert.backends.cpu.native.stencils import sums_nearby
from deltaconvert.backends.cpu.native.vectors import LANES, ROWS

# The fields of strips, beside the job of the stages behind the first: the address of that job and of the first stage,
# columns of a strip, strips, lines of a band, the first and the last line with a pixel, those of the ring.
CHAIN, WIDE, STRIP, STRIPS, BAND, FIRST_LINE, LAST_LINE, RING_LINES, RING_COLUMNS = range(9)
FIELDS = 9

_sums: Any = sums_nearby


@in_share
def _place(pixels: Any, pixel: Any) -> Any:
    """Where in a list in order it stands, or would."""
    low, high = 0, len(pixels)
    while low < high:
        middle = (low + high) // 2
        if pixels[middle] < pixel:
            low = middle + 1
        else:
            high = middle
    return low


@in_share
def _segment(job: Any, own: Any, pixels: Any, line: Any, strip: Any) -> Any:
    """The places of those pixels of a line of the output that lie in a strip: of the first, and how many."""
    begin = line * job[j.OUT_BREADTH] + strip * own[STRIP]
    end = min(begin + own[STRIP], (line + 1) * job[j.OUT_BREADTH])
    if not job[j.PIXELS]:
        return begin, end - begin
    first = _place(pixels, begin)
    return first, _place(pixels, end) - first


@in_share
def _columns(
    job: Any,
    own: Any,
    pixels: Any,
    line: Any,
    end: Any,
    top: Any,
    strip: Any,
    row: Any,
    flags: Any,
    found: Any,
) -> Any:
    """Columns of the ring that lines from `line` on read of `row`; `top` is the first row that `line` reads."""
    if not job[j.PIXELS]:
        for column in range(own[RING_COLUMNS]):
            found[column] = column
        return own[RING_COLUMNS]
    flags[:] = 0
    while line < end and top <= row:
        first, count = _segment(job, own, pixels, line, strip)
        start = line * job[j.OUT_BREADTH] + strip * own[STRIP]
        for place in range(first, first + count):
            column = (pixels[place] - start) * job[j.STRIDE_X]
            for tap in range(job[j.TAPS_X]):
                flags[column + tap * job[j.DILATION_X]] = 1
        line, top = line + 1, top + job[j.STRIDE_Y]
    count = 0
    for column in range(len(flags)):
        if flags[column]:
            found[count] = column
            count += 1
    return count


@in_share
def _make(job: Any, own: Any, line: Any, left: Any, found: Any, ring: Any, reads: Any, writes: Any) -> None:
    """The columns `found` of a line of the ring at `ring`, from line `line` of the input; `left` is column 0 there."""
    stage = ints(own[WIDE], j.STAGE)
    step, wide = 4 * stage[j.DEPTH], 4 * stage[j.CHANNELS]
    count = 0
    for column in found:
        if line < 0 or left + column < 0 or left + column >= job[j.BREADTH]:
            floats(ring + column * wide, stage[j.CHANNELS])[:] = 0
            continue
        reads[count] = job[j.INPUT] + (line * job[j.BREADTH] + left + column) * step
        writes[count] = ring + column * wide
        count += 1
    blocks = -(-count // ROWS)
    for i in range(count, blocks * ROWS):
        reads[i], writes[i] = reads[count - 1], writes[count - 1]
    for p in range(stage[j.PANELS]):
        panel = ints(stage[j.PANEL_TABLE] + p * 8 * j.PANEL, j.PANEL)
        for block in range(blocks):
            s.product_of(stage, panel, 1, stage[j.DEPTH], block, reads[block * ROWS :], writes, writes, False)


@shared
def share_strips(thread: Any, first_item: Any, last_item: Any, address: Any) -> None:
    """Strips of bands of lines, one after the other. The list of pixels is in order."""
    own = ints(address, FIELDS)
    job = ints(own[CHAIN], j.JOB)
    pixels = ints(job[j.PIXELS], job[j.COUNT] if job[j.PIXELS] else 0)
    outs = pixels[:0] if job[j.BY_PLACE] else pixels
    depthwise = ints(job[j.STAGE_TABLE], j.STAGE)
    panel, after = ints(depthwise[j.PANEL_TABLE], j.PANEL), floats(depthwise[j.ACTIVATION], 3)
    wide, taps = 4 * depthwise[j.CHANNELS], job[j.TAPS_Y] * job[j.TAPS_X]
    columns = own[RING_COLUMNS]
    scratch = job[j.SCRATCH] + thread * job[j.SCRATCH_BYTES]
    ring, ring_line = scratch, columns * wide
    scratch += own[RING_LINES] * ring_line
    found = ints(scratch, columns)
    scratch += 8 * columns
    flags = ints(scratch, columns)
    scratch += 8 * columns
    reads = ints(scratch, columns + ROWS)
    scratch += 8 * len(reads)
    writes = ints(scratch, columns + ROWS)
    scratch += 8 * len(writes)
    adds = ints(scratch, job[j.GROUP] * ROWS)
    scratch += 8 * len(adds)
    offsets = ints(scratch, taps)
    scratch += 8 * taps
    made = scratch + len(adds) * 4 * LANES
    for item in range(first_item, last_item):
        strip, begin = item % own[STRIPS], own[FIRST_LINE] + item // own[STRIPS] * own[BAND]
        left = strip * own[STRIP] * job[j.STRIDE_X] - job[j.PADDING_X]
        stream, done = -1, 0
        for line in range(begin, min(begin + own[BAND], own[LAST_LINE] + 1)):
            first, count = _segment(job, own, pixels, line, strip)
            if count == 0:
                continue
            if stream != line // job[j.OUT_HEIGHT]:
                stream, done = line // job[j.OUT_HEIGHT], -job[j.PADDING_Y]
            end = min((stream + 1) * job[j.OUT_HEIGHT], own[LAST_LINE] + 1)
            end = min(end, begin + own[BAND])
            top = (line - stream * job[j.OUT_HEIGHT]) * job[j.STRIDE_Y] - job[j.PADDING_Y]
            bottom = top + (job[j.TAPS_Y] - 1) * job[j.DILATION_Y]
            for row in range(max(top, done), bottom + 1):
                some = found[: _columns(job, own, pixels, line, end, top, strip, row, flags, found)]
                source = stream * job[j.HEIGHT] + row if 0 <= row < job[j.HEIGHT] else -1
                slot = ring + (row + job[j.PADDING_Y]) % own[RING_LINES] * ring_line
                _make(job, own, source, left, some, slot, reads, writes)
            done = bottom + 1
            for ky in range(job[j.TAPS_Y]):
                slot = (top + ky * job[j.DILATION_Y] + job[j.PADDING_Y]) % own[RING_LINES] * ring_line
                for kx in range(job[j.TAPS_X]):
                    offsets[ky * job[j.TAPS_X] + kx] = slot + kx * job[j.DILATION_X] * wide
            start = line * job[j.OUT_BREADTH] + strip * own[STRIP]
            blocks = -(-count // ROWS)
            for i in range(blocks * ROWS):
                place = first + min(i, count - 1)
                pixel = pixels[place] if len(pixels) else place
                reads[i] = ring + (pixel - start) * job[j.STRIDE_X] * wide
            for block in range(blocks):
                bases, to = reads[block * ROWS :].ctypes.data, made + block * ROWS * job[j.ROW_BYTES]
                _sums(
                    bases,
                    offsets.ctypes.data,
                    taps,
                    depthwise[j.CHANNELS],
                    panel[j.WEIGHTS],
                    panel[j.BIAS],
                    after[0],
                    after[1],
                    to,
                    job[j.ROW_BYTES] // 4,
                )
            if job[j.STAGES] == 1:
                s.keep(job, outs, first, count, depthwise[j.CHANNELS], made)
                continue
            s.rows_at(made, job[j.ROW_BYTES], outs[:0], 0, count, reads[: blocks * ROWS])
            s.finish(job, 1, outs, first, count, reads, writes, adds, flags, scratch)
