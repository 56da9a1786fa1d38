"""Gates by loops on torch's threads, of the streams that have a new frame; see deltaconvert/gate.py, the meaning.

In torch a frame of 640x360 that is smoothed over 9 pixels takes 68 ms on a Zen 3 core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu import loops
from deltaconvert.backends.cpu.machine_code import shared
from deltaconvert.backends.cpu.threads import pool
from deltaconvert.backends.reference import INTEGER
from deltaconvert.gate import Watch

ROWS, COLS = 32, 64  # of the pixels that are judged at a time: what they need stays in the innermost cache


def has_loops(watch: Watch, dtype: torch.dtype) -> bool:
    """What is learnt of noise, means over frames and a ceiling on what changes are left to torch."""
    gate = watch.gate
    plain = gate.noise == 0 and gate.recent == 1 and gate.max_density == 1 and gate.nonfinite == "pass"
    return loops.FOUND and plain and dtype in loops.DTYPES


def look(watch: Watch, streams: Sequence[int], frame: Tensor, stored: Tensor, changed: Tensor) -> None:
    """Mark in `changed` (N, 1, H, W), which is empty, where to store `frame` (N, C, H, W) of these streams: as
    Watch.look."""
    gate, limit = watch.gate, watch.threshold
    number = frame.numpy().dtype.type
    integer = INTEGER[frame.itemsize]
    bits = (x.view(integer).numpy() for x in (frame, stored))
    limits = (number(limit * times) for times in (1, gate.peak, gate.weak))
    smooth = 1 if limit == 0 else gate.smooth
    channels, height, width = frame.shape[1:]
    mask, places = changed[:, 0].numpy(), np.array(streams, dtype=np.int64)
    near, other = (np.empty((len(places), height, width), np.bool_) for _ in range(2))
    # What a thread works with: the differences of a piece of every channel, then a line for each of three numbers.
    size = (channels * (ROWS + 2 * (smooth // 2)) + 3) * (COLS + 2 * (smooth // 2))
    scratch = np.empty((pool().count, size), frame.numpy().dtype)
    pieces = len(places) * -(-height // ROWS)
    _judge(
        pieces, 1, frame.numpy(), stored.numpy(), *bits, *limits, smooth, places, mask, near, other, scratch
    )
    if gate.dilate:
        _take_along(len(places), 1, places, mask, near, gate.dilate)
    for stream, differs in zip(streams, other, strict=True):
        if gate.refresh:
            turn = watch.of(stream).turn(frame[stream : stream + 1])[0, 0]
            changed[stream, 0] |= turn & torch.from_numpy(differs)
        watch.ticks[stream] += 1
        if gate.cut < 1 and changed[stream].float().mean() >= gate.cut:
            watch.counts[1] += 1
            changed[stream] = True


@shared
def _judge(
    thread: int,
    first: int,
    last: int,
    frames: Any,
    all_stored: Any,
    all_bits: Any,
    all_stored_bits: Any,
    limit: Any,
    peak: Any,
    weak: Any,
    smooth: int,
    streams: Any,
    all_moved: Any,
    all_near: Any,
    all_other: Any,
    scratch: Any,
) -> None:
    """Pieces `first` to `last` of the streams, ROWS lines each. moved: beyond the threshold. Of each of the streams
    that are looked at, other: any bit differs; near: those of them that a change takes along."""
    channels, height, width = frames.shape[1:]
    pieces, around = -(-height // ROWS), smooth // 2
    breadth, lines = COLS + 2 * around, ROWS + 2 * around
    own = scratch[thread]
    # Zero beside the map, which adds nothing to a sum.
    change = own[: channels * lines * breadth].reshape(channels, lines, breadth)
    sums = own[channels * lines * breadth :].reshape(3, breadth)
    down, across, wide = sums[0], sums[1], sums[2]
    # A mean is no larger than what it is the mean of, but for roundings: most tiles need no sums.
    small = (weak if weak > 0 else limit) * frames.dtype.type(0.999)
    for piece in range(first, last):
        place, top = piece // pieces, piece % pieces * ROWS
        stream, bottom = streams[place], min(top + ROWS, height)
        frame, stored, moved = frames[stream], all_stored[stream], all_moved[stream]
        bits, stored_bits = all_bits[stream], all_stored_bits[stream]
        near, other = all_near[place], all_other[place]
        for left in range(0, width, COLS):
            right = min(left + COLS, width)
            for x in range(right - left):  # the columns that a mean is of
                wide[x] = min(left + x + around + 1, width) - max(left + x - around, 0)
            large = np.uint8(0)
            for c in range(channels):
                for row in range(ROWS + 2 * around):
                    y, line = top - around + row, change[c, row]
                    if y < 0 or y >= height:
                        line[:] = 0
                        continue
                    begin, end = max(left - around, 0), min(right + around, width)
                    line[: begin - left + around] = 0
                    line[end - left + around :] = 0
                    ours, theirs = frame[c, y], stored[c, y]
                    for x in range(begin, end):
                        by = ours[x] - theirs[x]
                        line[x - left + around] = by
                        large |= np.uint8(not abs(by) <= small)
            for y in range(top, bottom):
                over, faint = moved[y, left:right], near[y, left:right]
                differs = other[y, left:right]
                differs[:] = False
                for c in range(channels):
                    ours, theirs = bits[c, y, left:right], stored_bits[c, y, left:right]
                    for x in range(right - left):
                        differs[x] |= ours[x] != theirs[x]
                over[:] = False
                faint[:] = weak == 0
                if limit == 0:
                    over[:] = differs
                elif large:
                    high = frames.dtype.type(min(y + around + 1, height) - max(y - around, 0))
                    for c in range(channels):
                        down[:] = 0
                        for row in range(smooth):
                            line = change[c, y - top + row]
                            for x in range(len(down)):
                                down[x] += line[x]
                        for x in range(len(down)):
                            down[x] /= high
                        across[:] = 0
                        for col in range(smooth):
                            for x in range(right - left):
                                across[x] += down[x + col]
                        line = change[c, y - top + around]
                        for x in range(right - left):
                            mean = abs(across[x] / wide[x])
                            over[x] |= (not mean <= limit) | (not abs(line[x + around]) <= peak)
                            faint[x] |= not mean <= weak
                for x in range(right - left):
                    over[x] &= differs[x]
                    faint[x] &= differs[x]


@shared
def _take_along(thread: int, first: int, last: int, streams: Any, masks: Any, all_near: Any, by: int) -> None:
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
