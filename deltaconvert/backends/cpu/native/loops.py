"""Loops over lists of pixels, compiled by numba where it is installed (the extra "cpu").

For what one of them does, such as comparing computed rows with stored ones and storing those that moved, torch takes
five to ten calls, each of which walks the data again. Without numba the cpu backend does the same by torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.native.machine_code import FOUND as FOUND
from deltaconvert.backends.cpu.native.machine_code import compiled

DTYPES = (torch.float32, torch.float64)
Pair = tuple[int, int]


def listed(mask: Tensor) -> Tensor:
    """int64, the places of a mask in memory."""
    flat = mask.view(-1).numpy()
    words = flat[: len(flat) // 8 * 8].view(np.int64)
    found = np.empty(len(flat), dtype=np.int64)
    return torch.from_numpy(found[: _listed(flat, words, found)].copy())


@compiled
def _listed(flat: Any, words: Any, found: Any) -> int:
    count = 0
    for word in range(len(words)):
        if words[word]:
            for place in range(8 * word, 8 * word + 8):
                if flat[place]:
                    found[count] = place
                    count += 1
    for place in range(8 * len(words), len(flat)):
        if flat[place]:
            found[count] = place
            count += 1
    return count


def renew(
    rows: Tensor,
    places: Tensor,
    new: Tensor,
    limits: Tensor,
    candidates: Tensor | None,
    mask: Tensor,
    *,
    whole: bool = False,
) -> Tensor:
    """Store those rows of `new` (n, C) in rows[places] that moved by more than `limits` (C) in some channel.

    candidates: bool (pixels), the only pixels that may move; None for all. whole: `new` has a row for each row of
    `rows`.
    mask: bool (pixels), where moved pixels are marked. Returns their places, each once.
    """
    moved = np.empty(len(places), dtype=np.int64)
    may = places.new_empty(0, dtype=torch.bool) if candidates is None else candidates
    arrays = (x.numpy() for x in (rows, places, new.contiguous(), limits, may))
    return torch.from_numpy(moved[: _renew(*arrays, mask.numpy(), whole, moved)])


@compiled
def _renew(
    rows: Any, places: Any, new: Any, limits: Any, may: Any, mask: Any, whole: bool, moved: Any
) -> int:
    count, channels = 0, rows.shape[1]
    for i in range(len(places)):
        place = places[i]
        if len(may) and not may[place]:
            continue
        old, row = rows[place], new[place if whole else i]
        over = np.int32(0)
        for c in range(channels):
            over |= np.int32(not abs(old[c] - row[c]) <= limits[c])  # a NaN is over all limits
        if over:
            for c in range(channels):
                old[c] = row[c]
            if not mask[place]:  # a NaN would be listed each time that its pixel is
                mask[place] = True
                moved[count] = place
                count += 1
    return count


def touched(pixels: Tensor, size: Pair, edges: Pair, counts: Pair, streams: int) -> Tensor:
    """int64, the tiles that hold one of `pixels`: of `edges` pixels, `counts` in each of `streams` maps of `size`."""
    flags = np.zeros(streams * counts[0] * counts[1], dtype=np.bool_)
    found = np.empty(min(len(flags), len(pixels)), dtype=np.int64)
    return torch.from_numpy(found[: _touched(pixels.numpy(), size, edges, counts, flags, found)])


@compiled
def _touched(pixels: Any, size: Pair, edges: Pair, counts: Pair, flags: Any, found: Any) -> int:
    count, line, first = 0, -size[1], 0  # first: the first tile of the current line of pixels
    for pixel in pixels:
        if pixel < line or pixel >= line + size[1]:
            stream, y = divmod(pixel // size[1], size[0])
            line = pixel // size[1] * size[1]
            first = (stream * counts[0] + y // edges[0]) * counts[1]
        tile = first + (pixel - line) // edges[1]
        if not flags[tile]:
            flags[tile] = True
            found[count] = tile
            count += 1
    return count
