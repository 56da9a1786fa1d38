"""Lists cut into pieces of a few fixed sizes: oneDNN prepares itself once for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A chunk of rows. A call of oneDNN takes 0.06 ms beside its work, and few rows leave the product waiting for its
# weights: 368 rows of 2048 -> 512 on a Zen 3 core take 16 ms by 64 rows, 14 by 128, 12 by 256 and by 512.
CHUNK_BYTES, CHUNK_ROWS = 4 << 20, 8192
# The sizes of chunks, as shares of the largest. Few sizes pad more, many take longer to prepare.
SHARES = (1, 2, 4, 8, 32)
FULL_ENOUGH = 0.8  # a chunk filled so far costs less than several smaller ones


def chunks(indices: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut `indices` into pieces of the given sizes, largest first; a piece that is not full repeats its last index."""
    pieces, start, left = [], 0, len(indices)
    for size in sizes:
        while left > FULL_ENOUGH * size or (left and size == sizes[-1]):
            piece = indices[start : start + size]
            if left < size:
                piece = torch.cat([piece, piece[-1:].expand(size - left)])
            pieces.append(piece)
            start, left = start + size, max(0, left - size)
    return pieces


def sizes_below(largest: int, least: int, items: int) -> tuple[int, ...]:
    """The sizes of chunks of up to so many items: `largest`, or what all items fill, and shares of it, not below
    `least`."""
    largest = min(largest, 1 << (items - 1).bit_length())
    return tuple(dict.fromkeys(max(least, largest // share) for share in SHARES))
