"""A share of a chain of convolutions: a few blocks of pixels go through all of its stages while they are in the cache.

What it is told stands in a job (jobs.py), which `chains.py` fills in. It imports numba, so it is imported where a chain
is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native.along import sums_along
from deltaconvert.backends.cpu.native.kernels import product
from deltaconvert.backends.cpu.native.machine_code import shared
from deltaconvert.backends.cpu.native.memory import copy, floats, in_share, ints, put_byte
from deltaconvert.backends.cpu.native.reads import line_bytes, read, rows_at
from deltaconvert.backends.cpu.native.stencils import sums
from deltaconvert.backends.cpu.native.vectors import LANES, ROWS, Narrow, Vectors
from deltaconvert.backends.cpu.native.widening import widen

_sums, _sums_narrow = sums(), sums(Narrow)
_along, _along_narrow = sums_along(), sums_along(Narrow)


def _products(kind: type[Vectors]) -> Any:
    """(vectors of a panel, whether results go past the cache, whether rows are odd or others are asked for, what
    `product` takes)."""
    wide, slim, past = product(2, kind), product(1, kind), product(2, kind, past_the_cache=True)
    wide_first, slim_first = product(2, kind, first=True), product(1, kind, first=True)

    @in_share
    def multiply(
        vectors: Any,
        goes_past: Any,
        first: Any,
        table: Any,
        ahead: Any,
        taps: Any,
        depth: Any,
        odd: Any,
        weights: Any,
        bias: Any,
        to: Any,
        column: Any,
        add: Any,
        after: Any,
    ) -> None:
        low, high, slope = after[0], after[1], after[2]
        if first and vectors == 2:
            wide_first(table, ahead, taps, depth, odd, weights, bias, to, column, add, low, high, slope)
        elif first:
            slim_first(table, ahead, taps, depth, odd, weights, bias, to, column, add, low, high, slope)
        elif goes_past:
            past(table, ahead, taps, depth, odd, weights, bias, to, column, add, low, high, slope)
        elif vectors == 2:
            wide(table, ahead, taps, depth, odd, weights, bias, to, column, add, low, high, slope)
        else:
            slim(table, ahead, taps, depth, odd, weights, bias, to, column, add, low, high, slope)

    return multiply


_multiply, _multiply_narrow = _products(Vectors), _products(Narrow)


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
    ahead: Any,
) -> None:
    """One panel of channels of a block of ROWS pixels: sums over `taps` pieces of `depth` floats, which `reads` lists
    from this block on; `writes` and `adds` list the rows of all blocks. ahead: `reads` has as many rows of the next one
    behind its own."""
    table, to = reads.ctypes.data, writes.ctypes.data + 8 * ROWS * block
    add = adds.ctypes.data + 8 * ROWS * block if stage[j.ADDS] else 0
    after = floats(stage[j.ACTIVATION], 3)
    weights, bias, column = panel[j.WEIGHTS], panel[j.BIAS], stage[j.BYTES] * panel[j.COLUMN]
    vectors, odd = panel[j.VECTORS], stage[j.ODD]
    first, ahead = ahead or odd != 0, table + 8 * ROWS if ahead else table
    if stage[j.ALONG] and stage[j.BYTES] == 2:
        few = stage[j.CHANNELS]
        _along_narrow(table, taps, depth, few, weights, bias, to, add, after[0], after[1], after[2])
    elif stage[j.ALONG]:
        few = stage[j.CHANNELS]
        _along(table, taps, depth, few, weights, bias, to, add, after[0], after[1], after[2])
    elif stage[j.BYTES] == 2:
        _multiply_narrow(
            vectors, past, first, table, ahead, taps, depth, odd, weights, bias, to, column, add, after
        )
    else:
        _multiply(vectors, past, first, table, ahead, taps, depth, odd, weights, bias, to, column, add, after)


@in_share
def _by_channel(stage: Any, panel: Any, taps: Any, reads: Any, to: Any, step: Any) -> None:
    after = floats(stage[j.ACTIVATION], 3)
    weights, bias, table = panel[j.WEIGHTS], panel[j.BIAS], reads.ctypes.data
    if stage[j.BYTES] == 2:
        _sums_narrow(table, taps, stage[j.CHANNELS], weights, bias, after[0], after[1], to, step // 2)
    else:
        _sums(table, taps, stage[j.CHANNELS], weights, bias, after[0], after[1], to, step // 4)


@in_share
def _make_room(rows: Any, size: Any, scratch: Any) -> None:
    """Copy narrow rows of `size` bytes to where whole vectors can be read."""
    for i in range(len(rows)):
        copy(rows[i], scratch + i * 4 * LANES, size)
        rows[i] = scratch + i * 4 * LANES


@in_share
def keep(job: Any, pixels: Any, first: Any, count: Any, size: Any, rows: Any) -> None:
    """Store rows of `size` bytes from the scratch memory; where there are limits, which are of float32, those alone
    that moved by more, and mark them."""
    channels = size // 4
    limits = floats(job[j.LIMITS], channels)
    for i in range(count):
        pixel = pixels[first + i] if len(pixels) else first + i
        kept, made = job[j.OUT] + pixel * size, rows + i * job[j.ROW_BYTES]
        if not job[j.LIMITS]:
            copy(made, kept, size)
            continue
        old, new = floats(kept, channels), floats(made, channels)
        over = np.int32(0)
        for c in range(channels):
            over |= np.int32(not abs(old[c] - new[c]) <= limits[c])  # a NaN is over all limits
        if over:
            for c in range(channels):
                old[c] = new[c]
            put_byte(job[j.MARKS] + pixel, 1)


@in_share
def _pieces(job: Any, stage: Any, place: Any, whole: Any) -> Any:
    """(pieces that stage number `place` reads for each pixel, floats of a piece)."""
    depth = stage[j.DEPTH]
    if place > 0:
        return 1, depth
    if stage[j.BY_LINES]:
        return job[j.TAPS_Y], depth
    if whole:
        return job[j.TAPS_Y], depth * job[j.TAPS_X]
    return job[j.TAPS_Y] * job[j.TAPS_X], depth


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
    step, blocks = job[j.ROW_BYTES], -(-count // ROWS)
    made = scratch + len(adds) * 4 * LANES
    for s in range(stages, job[j.STAGES]):
        stage = ints(job[j.STAGE_TABLE] + s * 8 * j.STAGE, j.STAGE)
        channels, last = stage[j.CHANNELS], s == job[j.STAGES] - 1
        kept = last and not job[j.LIMITS] and channels >= LANES and not stage[j.BY_CHANNEL]
        rows, past = made + (s % 2) * len(adds) * step, kept and job[j.PAST_THE_CACHE] != 0
        if kept:
            rows_at(job[j.OUT], stage[j.BYTES] * channels, outs, first, count, writes[: blocks * ROWS])
        else:
            rows_at(rows, step, outs[:0], 0, count, writes[: blocks * ROWS])
        if stage[j.ADDS]:
            rows_at(stage[j.ADDS], stage[j.BYTES] * channels, outs, first, count, adds[: blocks * ROWS])
            if channels < LANES:
                _make_room(adds[: blocks * ROWS], stage[j.BYTES] * channels, scratch)
        taps, wide = job[j.TAPS_Y] * job[j.TAPS_X] if s == 0 else 1, made + 2 * len(adds) * step
        for block in range(blocks):
            pieces, depth = _pieces(job, stage, s, whole[block])
            wide = widen(stage, pieces, depth, reads[block * taps * ROWS :], wide)
        for p in range(stage[j.PANELS]):
            panel = ints(stage[j.PANEL_TABLE] + p * 8 * j.PANEL, j.PANEL)
            for block in range(blocks):
                if stage[j.BY_CHANNEL]:
                    _by_channel(stage, panel, taps, reads[block * taps * ROWS :], writes[block * ROWS], step)
                    continue
                pieces, depth = _pieces(job, stage, s, whole[block])
                # Rows of a map come from memory; what a window reads was mostly read for the block before.
                ahead = s == 0 and p == 0 and taps == 1 and block + 1 < blocks and not stage[j.WIDENED]
                own = reads[block * taps * ROWS :]
                product_of(stage, panel, pieces, depth, block, own, writes, adds, past, ahead)
        if not last:
            reads[: blocks * ROWS] = writes[: blocks * ROWS]
        elif not kept:
            keep(job, outs, first, count, stage[j.BYTES] * channels, rows)


@shared
def share(thread: Any, first_block: Any, last_block: Any, address: Any) -> None:
    """Blocks first_block to last_block of the job at `address`; `thread` says which scratch memory is free."""
    job = ints(address, j.JOB)
    pixels = ints(job[j.PIXELS], job[j.COUNT] if job[j.PIXELS] else 0)
    outs = pixels[:0] if job[j.BY_PLACE] else pixels
    group, scratch = job[j.GROUP], job[j.SCRATCH] + thread * job[j.SCRATCH_BYTES]
    reads = ints(scratch, group * job[j.TAPS_Y] * job[j.TAPS_X] * ROWS)
    scratch += 8 * len(reads)
    writes = ints(scratch, group * ROWS)
    scratch += 8 * len(writes)
    adds = ints(scratch, group * ROWS)
    scratch += 8 * len(adds)
    whole = ints(scratch, group)
    scratch += 8 * len(whole)
    lines, size = scratch, line_bytes(job)  # of a block
    scratch += group * size
    for start in range(first_block, last_block, group):
        blocks, first = min(group, last_block - start), start * ROWS
        count = min(job[j.COUNT] - first, blocks * ROWS)
        for block in range(blocks):
            read(job, pixels, first, count, block, reads, whole, lines + block * size)
        finish(job, 0, outs, first, count, reads, writes, adds, whole, scratch)
