"""The loops of gates: a frame's tiles are judged on torch's threads, then changes take their neighbours along.

A tile is ROWS lines of COLS pixels. Its differences lie beside those of the pixels around it that a mean reaches, for
every channel. It imports numba, so it is imported where a gate is met.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deltaconvert.backends.cpu.native.machine_code import shared
from deltaconvert.backends.cpu.native.memory import in_share

# Wide ones: short pieces of lines are neither fetched ahead nor on one page of memory. 720p, three channels, smoothed
# over 9, on two Zen 4 cores: 15 ms in tiles of 32x64, 9.3 of 16x128, 7.3 of 16x256, 6.9 of 16x640, whose differences
# (187 KB) fit a second cache, and 6.1 of 32x640.
ROWS, COLS = 16, 640


class Frames(NamedTuple):
    """What all tiles are judged by.

    values, stored: (N, C, H, W), what comes in and what is kept; bits, stored_bits: the same as integers. limit, peak,
    weak: see gate.Gate, as numbers of their type. smooth: pixels that a mean is over, along rows and columns.
    streams: those that are looked at. Written are moved (N, H, W): beyond the threshold; and of each of the streams
    that are looked at (streams, H, W) other: any bit differs; near: those of them that a change takes along.
    scratch: of each thread, as many numbers as `scratch_size` says.
    """

    values: Any
    stored: Any
    bits: Any
    stored_bits: Any
    limit: Any
    peak: Any
    weak: Any
    smooth: int
    streams: Any
    moved: Any
    near: Any
    other: Any
    scratch: Any


def scratch_size(channels: int, smooth: int) -> int:
    """The differences of a tile in every channel, then a line for each of two sums and their widths."""
    around = smooth // 2
    return (channels * (ROWS + 2 * around) + 3) * (COLS + 2 * around)


@shared
def judge(thread: int, first: int, last: int, frames: Any) -> None:
    """Pieces `first` to `last` of the streams, ROWS lines each."""
    channels, height, width = frames.values.shape[1:]
    pieces, around = -(-height // ROWS), frames.smooth // 2
    lines, breadth = ROWS + 2 * around, COLS + 2 * around
    own, size = frames.scratch[thread], channels * lines * breadth
    change, sums = own[:size].reshape(channels, lines, breadth), own[size:].reshape(3, breadth)
    for piece in range(first, last):
        place, top = piece // pieces, piece % pieces * ROWS
        bottom = min(top + ROWS, height)
        for left in range(0, width, COLS):
            _judge_tile(frames, place, top, bottom, left, min(left + COLS, width), change, sums)


@in_share
def _judge_tile(
    frames: Any, place: int, top: int, bottom: int, left: int, right: int, change: Any, sums: Any
) -> None:
    stream = frames.streams[place]
    large = _subtract(frames, stream, top, left, right, change)
    _widths(frames.values.shape[3], frames.smooth // 2, left, right, sums[2])
    for y in range(top, bottom):
        over, near = frames.moved[stream, y, left:right], frames.near[place, y, left:right]
        other = frames.other[place, y, left:right]
        _compare_bits(frames, stream, y, left, right, other)
        near[:] = frames.weak == 0
        over[:] = False
        if frames.limit == 0:
            over[:] = other
        elif large:
            _compare_means(frames, y, y - top, change, sums, over, near)
        for x in range(right - left):
            over[x] &= other[x]
            near[x] &= other[x]


@in_share
def _subtract(frames: Any, stream: int, top: int, left: int, right: int, change: Any) -> Any:
    """The differences of a tile and of the pixels around it; zero beside the map, which adds nothing to a sum.

    Returns whether any is large. A mean is no larger than what it is the mean of, but for roundings: most tiles need no
    sums.
    """
    channels, height, width = frames.values.shape[1:]
    around = frames.smooth // 2
    small = (frames.weak if frames.weak > 0 else frames.limit) * frames.values.dtype.type(0.999)
    begin, end = max(left - around, 0), min(right + around, width)
    large = np.uint8(0)
    for c in range(channels):
        for row in range(ROWS + 2 * around):
            y, line = top - around + row, change[c, row]
            if y < 0 or y >= height:
                line[:] = 0
                continue
            line[: begin - left + around] = 0
            line[end - left + around :] = 0
            ours, theirs = frames.values[stream, c, y], frames.stored[stream, c, y]
            for x in range(begin, end):
                by = ours[x] - theirs[x]
                line[x - left + around] = by
                large |= np.uint8(not abs(by) <= small)  # a NaN is large
    return large


@in_share
def _widths(width: int, around: int, left: int, right: int, wide: Any) -> None:
    """How many columns of the map the mean at each pixel is over."""
    for x in range(left, right):
        wide[x - left] = min(x + around + 1, width) - max(x - around, 0)


@in_share
def _compare_bits(frames: Any, stream: int, y: int, left: int, right: int, other: Any) -> None:
    other[:] = False
    for c in range(frames.bits.shape[1]):
        ours, theirs = frames.bits[stream, c, y, left:right], frames.stored_bits[stream, c, y, left:right]
        for x in range(right - left):
            other[x] |= ours[x] != theirs[x]


@in_share
def _compare_means(frames: Any, y: int, row: int, change: Any, sums: Any, over: Any, near: Any) -> None:
    """Of a line of pixels, line `row` of its tile: where a channel's mean, or its difference alone, is large."""
    around, height, count = frames.smooth // 2, frames.values.shape[2], len(over)
    down, across, wide = sums[0], sums[1], sums[2]
    limit, peak, weak = frames.limit, frames.peak, frames.weak
    high = frames.values.dtype.type(min(y + around + 1, height) - max(y - around, 0))
    for c in range(len(change)):
        down[:] = 0
        for each in range(row, row + frames.smooth):
            line = change[c, each]  # to iterate over lines costs a third of all: numba counts references
            for x in range(len(down)):
                down[x] += line[x]
        for x in range(len(down)):
            down[x] /= high
        across[:] = 0
        for col in range(frames.smooth):
            for x in range(count):
                across[x] += down[x + col]
        line = change[c, row + around]
        for x in range(count):
            mean = abs(across[x] / wide[x])
            over[x] |= (not mean <= limit) | (not abs(line[x + around]) <= peak)
            near[x] |= not mean <= weak


@shared
def take_along(thread: int, first: int, last: int, streams: Any, masks: Any, all_near: Any, by: int) -> None:
    """To the masks of streams add those of `near` that are up to `by` away from a pixel in it, along rows and
    columns."""
    height, width = masks.shape[1:]
    reached = np.empty((height, width), np.uint8)  # along the row
    some = np.empty(height, np.bool_)
    counts = np.empty(width, np.uint8)  # of rows around this one; 2 * 64 + 1 at most
    for place in range(first, last):
        mask, near = masks[streams[place]], all_near[place]
        reached[:], some[:], counts[:] = 0, False, 0
        for y in range(height):
            until = -1
            for x in range(width):
                if mask[y, x]:
                    reached[y, max(x - by, until, 0) : min(x + by + 1, width)] = 1
                    until, some[y] = x + by + 1, True
        for y in range(-by, height):
            enters, leaves = y + by, y - by - 1
            if enters < height and some[enters]:
                counts += reached[enters]
            if leaves >= 0 and some[leaves]:
                counts -= reached[leaves]
            if y >= 0:
                for x in range(width):
                    mask[y, x] |= near[y, x] & (counts[x] > 0)
