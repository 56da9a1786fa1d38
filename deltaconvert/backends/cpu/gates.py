"""Gates by loops, of the streams that have a new frame; see deltaconvert/gate.py, which is the meaning.

In torch a frame of 640x360 that is smoothed over 9 pixels takes 68 ms on a Zen 3 core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu import loops
from deltaconvert.backends.cpu.machine_code import compiled
from deltaconvert.backends.reference import INTEGER
from deltaconvert.gate import Watch

ROWS, COLS = 32, 64  # of the pixels that are judged at a time: what they need stays in the innermost cache


def has_loops(watch: Watch, dtype: torch.dtype) -> bool:
    """What is learnt of noise, means over frames and a ceiling on what changes are left to torch."""
    gate = watch.gate
    plain = gate.noise == 0 and gate.recent == 1 and gate.max_density == 1 and gate.nonfinite == "pass"
    return loops.FOUND and plain and dtype in loops.DTYPES


def look(watch: Watch, stream: int, frame: Tensor, stored: Tensor, changed: Tensor) -> None:
    """Mark in `changed` (H, W), which is empty, where to store `frame` (C, H, W) of a stream: as Watch.look."""
    gate, limit = watch.gate, watch.threshold
    number = frame.numpy().dtype.type
    integer = INTEGER[frame.itemsize]
    bits = (x.view(integer).numpy() for x in (frame, stored))
    limits = (number(limit * times) for times in (1, gate.peak, gate.weak))
    smooth = 1 if limit == 0 else gate.smooth
    mask = changed.numpy()
    near, other = np.empty_like(mask), np.empty_like(mask)
    _judge(frame.numpy(), stored.numpy(), *bits, *limits, smooth, mask, near, other)
    if gate.dilate:
        _take_along(mask, near, gate.dilate)
    if gate.refresh:
        changed |= watch.of(stream).turn(frame[None])[0, 0] & torch.from_numpy(other)
    watch.ticks[stream] += 1
    if gate.cut < 1 and changed.float().mean() >= gate.cut:
        watch.counts[1] += 1
        changed.fill_(True)


@compiled
def _judge(
    frame: Any,
    stored: Any,
    bits: Any,
    stored_bits: Any,
    limit: Any,
    peak: Any,
    weak: Any,
    smooth: int,
    moved: Any,
    near: Any,
    other: Any,
) -> None:
    """moved: beyond the threshold. other: any bit differs. near: those of them that a change takes along."""
    channels, height, width = frame.shape
    around = smooth // 2
    # Zero beside the map, which adds nothing to a sum.
    change = np.zeros((channels, ROWS + 2 * around, COLS + 2 * around), frame.dtype)
    down, across = np.zeros(COLS + 2 * around, frame.dtype), np.zeros(COLS, frame.dtype)
    # A mean is no larger than what it is the mean of, but for roundings: most tiles need no sums.
    small = (weak if weak > 0 else limit) * frame.dtype.type(0.999)
    for top in range(0, height, ROWS):
        bottom = min(top + ROWS, height)
        for left in range(0, width, COLS):
            right = min(left + COLS, width)
            large = np.uint8(0)
            for c in range(channels):
                for row in range(ROWS + 2 * around):
                    y, line = top - around + row, change[c, row]
                    if y < 0 or y >= height:
                        line[:] = 0
                        continue
                    first, last = max(left - around, 0), min(right + around, width)
                    line[: first - left + around] = 0
                    line[last - left + around :] = 0
                    ours, theirs = frame[c, y], stored[c, y]
                    for x in range(first, last):
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
                    rows = min(y + around + 1, height) - max(y - around, 0)
                    for c in range(channels):
                        down[:] = 0
                        for row in range(smooth):
                            line = change[c, y - top + row]
                            for x in range(len(down)):
                                down[x] += line[x]
                        for x in range(len(down)):
                            down[x] /= rows
                        across[:] = 0
                        for col in range(smooth):
                            for x in range(right - left):
                                across[x] += down[x + col]
                        line = change[c, y - top + around]
                        for x in range(right - left):
                            cols = min(left + x + around + 1, width) - max(left + x - around, 0)
                            mean = abs(across[x] / cols)
                            over[x] |= (not mean <= limit) | (not abs(line[x + around]) <= peak)
                            faint[x] |= not mean <= weak
                for x in range(right - left):
                    over[x] &= differs[x]
                    faint[x] &= differs[x]


@compiled
def _take_along(mask: Any, near: Any, by: int) -> None:
    """To a mask add those of `near` that are up to `by` away from a pixel in it, along rows and columns."""
    height, width = mask.shape
    reached = np.zeros((height, width), np.uint8)  # along the row
    some = np.zeros(height, np.bool_)
    for y in range(height):
        until = -1
        for x in range(width):
            if mask[y, x]:
                reached[y, max(x - by, until, 0) : min(x + by + 1, width)] = 1
                until, some[y] = x + by + 1, True
    counts = np.zeros(width, np.uint8)  # of rows around this one; 2 * 64 + 1 at most
    for y in range(-by, height):
        enters, leaves = y + by, y - by - 1
        if enters < height and some[enters]:
            counts += reached[enters]
        if leaves >= 0 and some[leaves]:
            counts -= reached[leaves]
        if y >= 0:
            for x in range(width):
                mask[y, x] |= near[y, x] & (counts[x] > 0)
