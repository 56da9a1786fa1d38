"""Finds, lists and stores the pixels of a frame that differ from what is stored, in one walk on torch's threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.native.machine_code import compiled, shared
from deltaconvert.backends.reference import INTEGER

PIECE = 4096  # pixels that a thread takes at a time, so that their flags stay in the innermost cache
MANY = 1 / 4  # share of a frame's pixels: if so many changed, they are not listed


def look(
    frame: Tensor,
    stored: Tensor,
    rows: Tensor,
    mask: Tensor,
    streams: Tensor,
    limit: float | None,
    nonfinite: Tensor | None,
    *,
    judged: bool,
) -> tuple[int, Tensor | None]:
    """Find the pixels at which a channel of frame (N, C, H, W) differs from `stored`, mark them in mask (N, 1, H, W),
    and copy them to `stored` and to rows (N * H * W, C). Returns how many there are, and their list if they are few.

    streams: those to look at. limit: the largest difference that does not count; None for any difference of bits. A NaN
    differs from everything. nonfinite: int64 (N), to which the pixels stored with NaN or infinity are added; None where
    all are finite. judged: whether the mask is already given.
    """
    integer = INTEGER[frame.itemsize]
    bits = frame.view(integer).view(*frame.shape[:2], -1).numpy()
    infinity = bits.dtype.type(torch.tensor(torch.inf, dtype=frame.dtype).view(integer))
    if limit is None:
        frame, stored, rows = (x.view(integer) for x in (frame, stored, rows))
    new, old = (x.view(*x.shape[:2], -1).numpy() for x in (frame, stored))
    plane = new.shape[2]
    pieces = len(streams) * -(-plane // PIECE)
    found, counts = np.empty(len(rows), dtype=np.int64), np.zeros(pieces, dtype=np.int64)
    at_most = None if limit is None else new.dtype.type(limit)
    flags = mask.view(len(frame), plane).view(torch.uint8).numpy()
    broken = np.zeros(pieces, dtype=np.int64)
    _look(
        pieces, 1, new, old, rows.numpy(), flags, streams.numpy(), at_most, judged, found, counts,
        nonfinite is not None, bits, infinity, broken,
    )  # fmt: skip
    if nonfinite is not None and broken.any():
        nonfinite[streams] += torch.from_numpy(broken).view(len(streams), -1).sum(1)
    count = int(counts.sum())
    if not 0 < count <= MANY * len(rows):
        return count, None
    pixels = np.empty(count, dtype=np.int64)
    _joined(found, counts, streams.numpy(), plane, pixels)
    return count, torch.from_numpy(pixels)


@shared
def _look(
    thread: int,
    first: int,
    last: int,
    frame: Any,
    stored: Any,
    rows: Any,
    flags: Any,
    streams: Any,
    limit: Any,
    judged: bool,
    found: Any,
    counts: Any,
    checked: bool,
    bits: Any,
    infinity: Any,
    broken: Any,
) -> None:
    """Do pieces `first` to `last` of the streams. The pixels of a piece are listed in its own part of `found`.

    checked: whether to count in `broken` what has NaN or infinity: bits (the frame as whole numbers) that have all of
    those of `infinity`.
    """
    channels, plane = frame.shape[1], frame.shape[2]
    pieces = -(-plane // PIECE)
    for piece in range(first, last):
        stream, start = streams[piece // pieces], piece % pieces * PIECE
        end = min(start + PIECE, plane)
        own = flags[stream, start:end]
        if not judged:
            own[:] = 0
            for c in range(channels):
                new, old = frame[stream, c, start:end], stored[stream, c, start:end]
                for i in range(len(own)):
                    if limit is None:
                        own[i] |= np.uint8(new[i] != old[i])
                    else:
                        own[i] |= np.uint8(not abs(new[i] - old[i]) <= limit)
        any_of_them = np.uint8(0)
        for i in range(len(own)):
            any_of_them |= own[i]
        if not any_of_them:
            continue
        listed, count = found[stream * plane + start : stream * plane + end], 0
        for i in range(len(own)):
            listed[count] = stream * plane + start + i  # overwritten by the next one, unless it is counted
            count += own[i]
        counts[piece] = count
        odd = False  # there are hardly ever any: each pixel by itself is asked only then
        for c in range(channels):
            new, old = frame[stream, c], stored[stream, c]
            for pixel in listed[:count]:
                value = new[pixel - stream * plane]
                old[pixel - stream * plane] = value
                rows[pixel, c] = value
                odd |= checked and bits[stream, c, pixel - stream * plane] & infinity == infinity
        if odd:
            for pixel in listed[:count]:
                one = False
                for c in range(channels):
                    one |= bits[stream, c, pixel - stream * plane] & infinity == infinity
                broken[piece] += one


@compiled
def _joined(found: Any, counts: Any, streams: Any, plane: int, pixels: Any) -> None:
    """The lists of all pieces one after the other."""
    pieces, at = -(-plane // PIECE), 0
    for piece in range(len(counts)):
        start = streams[piece // pieces] * plane + piece % pieces * PIECE
        for i in range(counts[piece]):
            pixels[at + i] = found[start + i]
        at += counts[piece]
