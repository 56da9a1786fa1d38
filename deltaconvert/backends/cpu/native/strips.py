"""A share of an inverted residual: 1x1 to many channels, a depthwise window over those, and the stages behind it.

A strip of columns is walked down line by line. The lines of the wide map that the window reads lie in a ring as large
as the cache near the core: that map is never stored. Columns that two strips read are made twice.

It imports numba, so it is imported where strips are made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native import shares as s
from deltaconvert.backends.cpu.native.machine_code import shared
from deltaconvert.backends.cpu.native.memory import floats, in_share, ints
from deltaconvert.backends.cpu.native.stencils import sums_nearby
from deltaconvert.backends.cpu.native.vectors import LANES, ROWS, Narrow
from deltaconvert.backends.cpu.native.widening import widen

# The fields of strips, beside the job of the stages behind the first: the address of that job and of the first stage,
# columns of a strip, strips, lines of a band, the first and the last line with a pixel, those of the ring.
CHAIN, WIDE, STRIP, STRIPS, BAND, FIRST_LINE, LAST_LINE, RING_LINES, RING_COLUMNS = range(9)
FIELDS = 9

_sums, _sums_narrow = sums_nearby(), sums_nearby(Narrow)


class _Room(NamedTuple):
    """What a thread works in.

    ring: its address, and line_bytes of a line of it. found, flags: columns of the ring. reads, writes, adds: addresses
    of rows. offsets: of the window's taps in the ring. wide: the address of a line of the input in floats. scratch:
    that of what is left, for the stages behind.
    """

    ring: Any
    line_bytes: Any
    found: Any
    flags: Any
    reads: Any
    writes: Any
    adds: Any
    offsets: Any
    wide: Any
    scratch: Any


@in_share
def _room_of(job: Any, own: Any, row: Any, thread: Any) -> Any:
    columns = own[RING_COLUMNS]
    ring, line_bytes = job[j.SCRATCH] + thread * job[j.SCRATCH_BYTES], columns * row
    at = ring + own[RING_LINES] * line_bytes
    found, flags = ints(at, columns), ints(at + 8 * columns, columns)
    at += 16 * columns
    rows = columns + ROWS
    reads, writes = ints(at, rows), ints(at + 8 * rows, rows)
    at += 16 * rows
    adds = ints(at, job[j.GROUP] * ROWS)
    at += 8 * len(adds)
    offsets = ints(at, job[j.TAPS_Y] * job[j.TAPS_X])
    at += 8 * len(offsets)
    stage = ints(own[WIDE], j.STAGE)
    scratch = at + stage[j.WIDENED] * rows * 4 * stage[j.DEPTH]
    return _Room(ring, line_bytes, found, flags, reads, writes, adds, offsets, at, scratch)


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
def _make(job: Any, own: Any, line: Any, left: Any, found: Any, ring: Any, room: Any) -> None:
    """The columns `found` of a line of the ring at `ring`, from line `line` of the input; `left` is column 0 there."""
    reads, writes, wide_at = room.reads, room.writes, room.wide
    stage = ints(own[WIDE], j.STAGE)
    step, wide = stage[j.READ_BYTES], stage[j.BYTES] * stage[j.CHANNELS]
    count = 0
    for column in found:
        if line < 0 or left + column < 0 or left + column >= job[j.BREADTH]:
            floats(ring + column * wide, wide // 4)[:] = 0
            continue
        reads[count] = job[j.INPUT] + (line * job[j.BREADTH] + left + column) * step
        writes[count] = ring + column * wide
        count += 1
    blocks = -(-count // ROWS)
    for i in range(count, blocks * ROWS):
        reads[i], writes[i] = reads[count - 1], writes[count - 1]
    for block in range(blocks):
        wide_at = widen(stage, 1, stage[j.DEPTH], reads[block * ROWS :], wide_at)
    for p in range(stage[j.PANELS]):
        panel = ints(stage[j.PANEL_TABLE] + p * 8 * j.PANEL, j.PANEL)
        for block in range(blocks):
            own = reads[block * ROWS :]
            s.product_of(stage, panel, 1, stage[j.DEPTH], block, own, writes, writes, False, False)


@in_share
def _fill_ring(
    job: Any, own: Any, room: Any, pixels: Any, line: Any, end: Any, top: Any, row: Any, strip: Any
) -> None:
    """Rows from `row` on, to the last one that `line` reads: of each what lines up to `end` need, too."""
    stream = line // job[j.OUT_HEIGHT]
    left = strip * own[STRIP] * job[j.STRIDE_X] - job[j.PADDING_X]
    for each in range(row, top + (job[j.TAPS_Y] - 1) * job[j.DILATION_Y] + 1):
        count = _columns(job, own, pixels, line, end, top, strip, each, room.flags, room.found)
        source = stream * job[j.HEIGHT] + each if 0 <= each < job[j.HEIGHT] else -1
        slot = room.ring + _slot(job, own, room, each)
        _make(job, own, source, left, room.found[:count], slot, room)


@in_share
def _slot(job: Any, own: Any, room: Any, row: Any) -> Any:
    """Where a row of the input lies in the ring."""
    return (row + job[j.PADDING_Y]) % own[RING_LINES] * room.line_bytes


@in_share
def _sum_windows(
    job: Any,
    own: Any,
    room: Any,
    pixels: Any,
    line: Any,
    top: Any,
    strip: Any,
    first: Any,
    count: Any,
    made: Any,
) -> None:
    """The depthwise convolution of `count` pixels of a line, from place `first` on: rows from address `made` on."""
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    panel, after = ints(stage[j.PANEL_TABLE], j.PANEL), floats(stage[j.ACTIVATION], 3)
    channels, taps = stage[j.CHANNELS], job[j.TAPS_Y] * job[j.TAPS_X]
    wide = stage[j.BYTES] * channels
    weights, bias, offsets = panel[j.WEIGHTS], panel[j.BIAS], room.offsets.ctypes.data
    for ky in range(job[j.TAPS_Y]):
        slot = _slot(job, own, room, top + ky * job[j.DILATION_Y])
        for kx in range(job[j.TAPS_X]):
            room.offsets[ky * job[j.TAPS_X] + kx] = slot + kx * job[j.DILATION_X] * wide
    start = line * job[j.OUT_BREADTH] + strip * own[STRIP]
    blocks = -(-count // ROWS)
    for i in range(blocks * ROWS):
        place = first + min(i, count - 1)
        pixel = pixels[place] if len(pixels) else place
        room.reads[i] = room.ring + (pixel - start) * job[j.STRIDE_X] * wide
    for block in range(blocks):
        reads, to = room.reads[block * ROWS :].ctypes.data, made + block * ROWS * job[j.ROW_BYTES]
        step = job[j.ROW_BYTES] // stage[j.BYTES]
        if stage[j.BYTES] == 2:
            _sums_narrow(reads, offsets, taps, channels, weights, bias, after[0], after[1], to, step)
        else:
            _sums(reads, offsets, taps, channels, weights, bias, after[0], after[1], to, step)


@shared
def share_strips(thread: Any, first_item: Any, last_item: Any, address: Any) -> None:
    """Strips of bands of lines, one after the other. The list of pixels is in order."""
    own = ints(address, FIELDS)
    job = ints(own[CHAIN], j.JOB)
    pixels = ints(job[j.PIXELS], job[j.COUNT] if job[j.PIXELS] else 0)
    outs = pixels[:0] if job[j.BY_PLACE] else pixels
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    row = stage[j.BYTES] * stage[j.CHANNELS]
    room = _room_of(job, own, row, thread)
    made = room.scratch + len(room.adds) * 4 * LANES
    for item in range(first_item, last_item):
        strip, begin = item % own[STRIPS], own[FIRST_LINE] + item // own[STRIPS] * own[BAND]
        last = min(begin + own[BAND], own[LAST_LINE] + 1)
        stream, held = -1, 0  # the ring holds rows of this stream before row `held`
        for line in range(begin, last):
            first, count = _segment(job, own, pixels, line, strip)
            if count == 0:
                continue
            if stream != line // job[j.OUT_HEIGHT]:
                stream, held = line // job[j.OUT_HEIGHT], -job[j.PADDING_Y]
            top = (line - stream * job[j.OUT_HEIGHT]) * job[j.STRIDE_Y] - job[j.PADDING_Y]
            end = min((stream + 1) * job[j.OUT_HEIGHT], last)
            _fill_ring(job, own, room, pixels, line, end, top, max(top, held), strip)
            held = top + (job[j.TAPS_Y] - 1) * job[j.DILATION_Y] + 1
            _sum_windows(job, own, room, pixels, line, top, strip, first, count, made)
            if job[j.STAGES] == 1:
                s.keep(job, outs, first, count, row, made)
                continue
            s.rows_at(made, job[j.ROW_BYTES], outs[:0], 0, count, room.reads[: -(-count // ROWS) * ROWS])
            s.finish(job, 1, outs, first, count, room.reads, room.writes, room.adds, room.flags, room.scratch)
