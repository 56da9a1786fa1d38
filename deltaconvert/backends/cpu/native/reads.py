"""Where the blocks of a share read: addresses of rows, tap after tap.

It imports numba, so it is imported where a chain is made.
"""

from __future__ import annotations

from typing import Any

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native.memory import copy, in_share, ints
from deltaconvert.backends.cpu.native.vectors import ROWS


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
    y = pixel // job[j.OUT_BREADTH]
    x, stream = pixel - y * job[j.OUT_BREADTH], y // job[j.OUT_HEIGHT]
    left, far = x * job[j.STRIDE_X] - job[j.PADDING_X], (job[j.TAPS_X] - 1) * job[j.DILATION_X]
    beside = left >= 0 and left + (ROWS - 1) * job[j.STRIDE_X] + far < job[j.BREADTH]
    if (
        not beside
        or x + ROWS > job[j.OUT_BREADTH]
        or (len(pixels) and pixels[first + ROWS - 1] != pixel + ROWS - 1)
    ):
        return False
    if len(pixels):
        for r in range(1, ROWS - 1):
            if pixels[first + r] != pixel + r:
                return False
    step = ints(job[j.STAGE_TABLE], j.STAGE)[j.READ_BYTES]
    across, along = job[j.STRIDE_X] * step, job[j.DILATION_X] * step
    top = (y - stream * job[j.OUT_HEIGHT]) * job[j.STRIDE_Y] - job[j.PADDING_Y]
    taps_x = job[j.TAPS_X]
    place = 0
    line = job[j.INPUT] + ((stream * job[j.HEIGHT] + top) * job[j.BREADTH] + left) * step
    for ky in range(job[j.TAPS_Y]):
        row = top + ky * job[j.DILATION_Y]
        outside = row < 0 or row >= job[j.HEIGHT]
        start = job[j.ZEROS] if outside else line + ky * job[j.DILATION_Y] * job[j.BREADTH] * step
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
def line_bytes(job: Any) -> Any:
    """Of the lines of taps of a block, where they are copied."""
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    size = ROWS * job[j.TAPS_Y] * job[j.TAPS_X] * stage[j.READ_BYTES]
    return stage[j.BY_LINES] * (-(-size // 8) * 8)


@in_share
def _read_lines(job: Any, step: Any, pixels: Any, first: Any, count: Any, own: Any, lines: Any) -> None:
    """By lines of taps; those that are not one piece of the map are copied to `lines`, with zeros around the map."""
    taps_y, taps_x, breadth = job[j.TAPS_Y], job[j.TAPS_X], job[j.BREADTH]
    far = (taps_x - 1) * job[j.DILATION_X]
    for r in range(ROWS):
        place = first + min(r, count - 1)
        pixel = pixels[place] if len(pixels) else place
        y = pixel // job[j.OUT_BREADTH]
        left = (pixel - y * job[j.OUT_BREADTH]) * job[j.STRIDE_X] - job[j.PADDING_X]
        stream = y // job[j.OUT_HEIGHT]
        top = (y - stream * job[j.OUT_HEIGHT]) * job[j.STRIDE_Y] - job[j.PADDING_Y]
        one_piece = job[j.DILATION_X] == 1 and left >= 0 and left + far < breadth
        for ky in range(taps_y):
            row = top + ky * job[j.DILATION_Y]
            line = job[j.INPUT] + ((stream * job[j.HEIGHT] + row) * breadth + left) * step
            if row < 0 or row >= job[j.HEIGHT]:
                line = job[j.ZEROS]
            elif not one_piece:
                copied = lines + (r * taps_y + ky) * taps_x * step
                for kx in range(taps_x):
                    col = left + kx * job[j.DILATION_X]
                    at = line + kx * job[j.DILATION_X] * step if 0 <= col < breadth else job[j.ZEROS]
                    copy(at, copied + kx * step, step)
                line = copied
            own[ky * ROWS + r] = line


@in_share
def read(
    job: Any, pixels: Any, first: Any, count: Any, block: Any, reads: Any, whole: Any, lines: Any
) -> None:
    """Addresses of what a block reads: by lines of taps that are one piece if all of them are, else tap by tap.

    lines: memory of the block, where pairs reach from tap to tap and lines are read whole or copied there.
    """
    taps_y, taps_x = job[j.TAPS_Y], job[j.TAPS_X]
    own = reads[block * taps_y * taps_x * ROWS : (block + 1) * taps_y * taps_x * ROWS]
    first, count = first + block * ROWS, count - block * ROWS
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    step = stage[j.READ_BYTES]
    if not job[j.HEIGHT]:
        rows_at(job[j.INPUT], step, pixels, first, count, own)
        whole[block] = False
        return
    inside = job[j.DILATION_X] == 1 and not stage[j.BY_CHANNEL]
    possible = count >= ROWS and (inside or not stage[j.BY_LINES])
    if possible and _read_side_by_side(job, pixels, first, own, inside):
        whole[block] = inside
        return
    if stage[j.BY_LINES]:
        _read_lines(job, step, pixels, first, count, own, lines)
        whole[block] = True
        return
    breadth, line = job[j.BREADTH], -job[j.OUT_BREADTH]
    far = (taps_x - 1) * job[j.DILATION_X]
    stream, top = 0, 0
    for attempt in range(2):
        for r in range(ROWS):
            place = first + min(r, count - 1)
            pixel = pixels[place] if len(pixels) else place
            if pixel < line or pixel >= line + job[j.OUT_BREADTH]:
                y = pixel // job[j.OUT_BREADTH]
                line, stream = y * job[j.OUT_BREADTH], y // job[j.OUT_HEIGHT]
                top = (y - stream * job[j.OUT_HEIGHT]) * job[j.STRIDE_Y] - job[j.PADDING_Y]
            left = (pixel - line) * job[j.STRIDE_X] - job[j.PADDING_X]
            inside = inside and left >= 0 and left + far < breadth
            for ky in range(taps_y):
                row = top + ky * job[j.DILATION_Y]
                start = job[j.INPUT] + ((stream * job[j.HEIGHT] + row) * breadth + left) * step
                outside = row < 0 or row >= job[j.HEIGHT]
                if inside:
                    own[ky * ROWS + r] = job[j.ZEROS] if outside else start
                    continue
                for kx in range(taps_x):
                    col = left + kx * job[j.DILATION_X]
                    there = not outside and col >= 0 and col < breadth
                    at = start + kx * job[j.DILATION_X] * step if there else job[j.ZEROS]
                    own[(ky * taps_x + kx) * ROWS + r] = at
        whole[block] = inside
        if inside or attempt == 1:
            return
