"""A share of a chain of convolutions: a few blocks of pixels go through all of its stages while they are in the cache.

All that the compiled code is told stands in arrays of integers, addresses among them: `chains.py` fills them in. It
imports numba, so it is imported where a chain is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from deltaconvert.backends.cpu.kernels import product
from deltaconvert.backends.cpu.machine_code import shared
from deltaconvert.backends.cpu.stencils import sums
from deltaconvert.backends.cpu.vectors import LANES, ROWS

# The fields of a job. A window of one tap without stride and padding reads the pixel that it makes.
PIXELS, COUNT, STAGES, STAGE_TABLE, GROUP, SCRATCH, SCRATCH_BYTES, ROW_BYTES = range(8)
INPUT, BY_PLACE, OUT, LIMITS, MARKS, ZEROS = range(8, 14)
HEIGHT, BREADTH, OUT_HEIGHT, OUT_BREADTH, TAPS_Y, TAPS_X = range(14, 20)
STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, DILATION_Y, DILATION_X, PAST_THE_CACHE = range(20, 27)
JOB = 27
# Those of a stage, and of a panel of its weights.
DEPTH, CHANNELS, PANELS, PANEL_TABLE, ADDS, ACTIVATION, BY_CHANNEL = range(7)
STAGE = 7
COLUMN, VECTORS, WEIGHTS, BIAS = range(4)
PANEL = 4

_wide, _slim, _past = product(2), product(1), product(2, past_the_cache=True)


def _address(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), code


_sums: Any = sums
_pointer: Any = intrinsic(_address)
_array: Any = carray


def in_share(function: Any) -> Any:
    return njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)


@in_share
def ints(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.int64)


@in_share
def floats(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.float32)


@in_share
def product_of(
    stage: Any,
    panel: Any,
    taps: Any,
    depth: Any,
    block: Any,
    reads: Any,
    writes: Any,
    adds: Any,
    past: Any,
) -> None:
    table, to = reads.ctypes.data, writes.ctypes.data + 8 * ROWS * block
    add = adds.ctypes.data + 8 * ROWS * block if stage[ADDS] else 0
    after = floats(stage[ACTIVATION], 3)
    weights, bias, column = panel[WEIGHTS], panel[BIAS], 4 * panel[COLUMN]
    if past:
        _past(table, taps, depth, weights, bias, to, column, add, after[0], after[1], after[2])
    elif panel[VECTORS] == 2:
        _wide(table, taps, depth, weights, bias, to, column, add, after[0], after[1], after[2])
    else:
        _slim(table, taps, depth, weights, bias, to, column, add, after[0], after[1], after[2])


@in_share
def _by_channel(stage: Any, panel: Any, taps: Any, reads: Any, to: Any, step: Any) -> None:
    after = floats(stage[ACTIVATION], 3)
    weights, bias, table = panel[WEIGHTS], panel[BIAS], reads.ctypes.data
    _sums(table, taps, stage[CHANNELS], weights, bias, after[0], after[1], to, step // 4)


@in_share
def rows_at(base: Any, step: Any, pixels: Any, first: Any, count: Any, table: Any) -> None:
    """Addresses of the rows of places `first` on: of their pixels, or one after the other where there is no list."""
    for i in range(len(table)):
        place = first + min(i, count - 1)  # the last block is filled up with its last pixel
        table[i] = base + step * (pixels[place] if len(pixels) else place)


@in_share
def _read_side_by_side(job: Any, pixels: Any, first: Any, own: Any, by_lines: Any) -> Any:
    """As _read, of pixels beside each other whose taps lie in the map's width: False where they are not."""
    pixel = pixels[first] if len(pixels) else first
    y = pixel // job[OUT_BREADTH]
    x, stream = pixel - y * job[OUT_BREADTH], y // job[OUT_HEIGHT]
    left, far = x * job[STRIDE_X] - job[PADDING_X], (job[TAPS_X] - 1) * job[DILATION_X]
    beside = left >= 0 and left + (ROWS - 1) * job[STRIDE_X] + far < job[BREADTH]
    if (
        not beside
        or x + ROWS > job[OUT_BREADTH]
        or (len(pixels) and pixels[first + ROWS - 1] != pixel + ROWS - 1)
    ):
        return False
    if len(pixels):
        for r in range(1, ROWS - 1):
            if pixels[first + r] != pixel + r:
                return False
    step = 4 * ints(job[STAGE_TABLE], STAGE)[DEPTH]
    across, along = job[STRIDE_X] * step, job[DILATION_X] * step
    top, taps_x, place = (y - stream * job[OUT_HEIGHT]) * job[STRIDE_Y] - job[PADDING_Y], job[TAPS_X], 0
    line = job[INPUT] + ((stream * job[HEIGHT] + top) * job[BREADTH] + left) * step
    for ky in range(job[TAPS_Y]):
        row = top + ky * job[DILATION_Y]
        outside = row < 0 or row >= job[HEIGHT]
        start = job[ZEROS] if outside else line + ky * job[DILATION_Y] * job[BREADTH] * step
        to_right, to_next = (0, 0) if outside else (along, across)
        for _ in range(1 if by_lines else taps_x):
            at = start
            for r in range(ROWS):
                own[place + r] = at
                at += to_next
            start += to_right
            place += ROWS
    return True


@in_share
def _read(job: Any, pixels: Any, first: Any, count: Any, block: Any, reads: Any, whole: Any) -> None:
    """Addresses of what a block reads: by lines of taps that are one piece if all of them are, else tap by tap."""
    taps_y, taps_x = job[TAPS_Y], job[TAPS_X]
    own = reads[block * taps_y * taps_x * ROWS : (block + 1) * taps_y * taps_x * ROWS]
    first, count = first + block * ROWS, count - block * ROWS
    step = 4 * ints(job[STAGE_TABLE], STAGE)[DEPTH]
    if not job[HEIGHT]:
        rows_at(job[INPUT], step, pixels, first, count, own)
        whole[block] = False
        return
    inside = job[DILATION_X] == 1 and not ints(job[STAGE_TABLE], STAGE)[BY_CHANNEL]
    if count >= ROWS and _read_side_by_side(job, pixels, first, own, inside):
        whole[block] = inside
        return
    breadth, line = job[BREADTH], -job[OUT_BREADTH]
    far = (taps_x - 1) * job[DILATION_X]
    stream, top = 0, 0
    for attempt in range(2):
        for r in range(ROWS):
            place = first + min(r, count - 1)
            pixel = pixels[place] if len(pixels) else place
            if pixel < line or pixel >= line + job[OUT_BREADTH]:
                y = pixel // job[OUT_BREADTH]
                line, stream = y * job[OUT_BREADTH], y // job[OUT_HEIGHT]
                top = (y - stream * job[OUT_HEIGHT]) * job[STRIDE_Y] - job[PADDING_Y]
            left = (pixel - line) * job[STRIDE_X] - job[PADDING_X]
            inside = inside and left >= 0 and left + far < breadth
            for ky in range(taps_y):
                row = top + ky * job[DILATION_Y]
                start = job[INPUT] + ((stream * job[HEIGHT] + row) * breadth + left) * step
                outside = row < 0 or row >= job[HEIGHT]
                if inside:
                    own[ky * ROWS + r] = job[ZEROS] if outside else start
                    continue
                for kx in range(taps_x):
                    col = left + kx * job[DILATION_X]
                    there = not outside and col >= 0 and col < breadth
                    at = start + kx * job[DILATION_X] * step if there else job[ZEROS]
                    own[(ky * taps_x + kx) * ROWS + r] = at
        whole[block] = inside
        if inside or attempt == 1:
            return


@in_share
def _widen(rows: Any, channels: Any, scratch: Any) -> None:
    """Copy narrow rows to where whole vectors can be read."""
    for i in range(len(rows)):
        old, new = floats(rows[i], channels), floats(scratch + i * 4 * LANES, channels)
        for c in range(channels):
            new[c] = old[c]
        rows[i] = scratch + i * 4 * LANES


@in_share
def keep(job: Any, pixels: Any, first: Any, count: Any, channels: Any, rows: Any) -> None:
    """Store rows from the scratch memory; where there are limits, those alone that moved by more, and mark them."""
    compared = job[LIMITS] != 0
    limits = floats(job[LIMITS], channels)
    for i in range(count):
        pixel = pixels[first + i] if len(pixels) else first + i
        old = floats(job[OUT] + pixel * 4 * channels, channels)
        new = floats(rows + i * job[ROW_BYTES], channels)
        over = np.int32(not compared)
        if compared:
            for c in range(channels):
                over |= np.int32(not abs(old[c] - new[c]) <= limits[c])  # a NaN is over all limits
        if over:
            for c in range(channels):
                old[c] = new[c]
            if compared:
                _array(_pointer(job[MARKS] + pixel), (1,), types.uint8)[0] = 1


@in_share
def finish(
    job: Any,
    stages: Any,
    outs: Any,
    first: Any,
    count: Any,
    reads: Any,
    writes: Any,
    adds: Any,
    whole: Any,
    scratch: Any,
) -> None:
    """The stages from number `stages` on, of places `first` on; `reads` says what the first of them reads."""
    step, blocks = job[ROW_BYTES], -(-count // ROWS)
    made = scratch + len(adds) * 4 * LANES
    for s in range(stages, job[STAGES]):
        stage = ints(job[STAGE_TABLE] + s * 8 * STAGE, STAGE)
        channels, last = stage[CHANNELS], s == job[STAGES] - 1
        kept = last and not job[LIMITS] and channels >= LANES and not stage[BY_CHANNEL]
        rows, past = made + (s % 2) * len(adds) * step, kept and job[PAST_THE_CACHE] != 0
        if kept:
            rows_at(job[OUT], 4 * channels, outs, first, count, writes[: blocks * ROWS])
        else:
            rows_at(rows, step, outs[:0], 0, count, writes[: blocks * ROWS])
        if stage[ADDS]:
            rows_at(stage[ADDS], 4 * channels, outs, first, count, adds[: blocks * ROWS])
            if channels < LANES:
                _widen(adds[: blocks * ROWS], channels, scratch)
        taps = job[TAPS_Y] * job[TAPS_X] if s == 0 else 1
        for p in range(stage[PANELS]):
            panel = ints(stage[PANEL_TABLE] + p * 8 * PANEL, PANEL)
            for block in range(blocks):
                if stage[BY_CHANNEL]:
                    _by_channel(stage, panel, taps, reads[block * taps * ROWS :], writes[block * ROWS], step)
                    continue
                pieces, depth = taps, stage[DEPTH]
                if s == 0 and whole[block]:
                    pieces, depth = job[TAPS_Y], depth * job[TAPS_X]
                product_of(
                    stage, panel, pieces, depth, block, reads[block * taps * ROWS :], writes, adds, past
                )
        if not last:
            reads[: blocks * ROWS] = writes[: blocks * ROWS]
        elif not kept:
            keep(job, outs, first, count, channels, rows)


@shared
def share(thread: Any, first_block: Any, last_block: Any, address: Any) -> None:
    """Blocks first_block to last_block of the job at `address`; `thread` says which scratch memory is free."""
    job = ints(address, JOB)
    pixels = ints(job[PIXELS], job[COUNT] if job[PIXELS] else 0)
    outs = pixels[:0] if job[BY_PLACE] else pixels
    group, scratch = job[GROUP], job[SCRATCH] + thread * job[SCRATCH_BYTES]
    reads = ints(scratch, group * job[TAPS_Y] * job[TAPS_X] * ROWS)
    scratch += 8 * len(reads)
    writes = ints(scratch, group * ROWS)
    scratch += 8 * len(writes)
    adds = ints(scratch, group * ROWS)
    scratch += 8 * len(adds)
    whole = ints(scratch, group)
    scratch += 8 * len(whole)
    for start in range(first_block, last_block, group):
        blocks, first = min(group, last_block - start), start * ROWS
        count = min(job[COUNT] - first, blocks * ROWS)
        for block in range(blocks):
            _read(job, pixels, first, count, block, reads, whole)
        finish(job, 0, outs, first, count, reads, writes, adds, whole, scratch)
