"""Rows of bfloat16 as floats, for products of floats: made once for a block of pixels, read once for each channel.

It imports numba, so it is imported where a chain is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native.memory import in_share, shorts, words
from deltaconvert.backends.cpu.native.vectors import ROWS


@in_share
def widen(stage: Any, pieces: Any, depth: Any, reads: Any, to: Any) -> Any:
    """Have the `pieces` rows of `depth` numbers that each pixel of a block reads as floats at address `to`, if the
    stage multiplies such; `reads` then says where. Returns the address behind them."""
    if not stage[j.WIDENED]:
        return to
    for i in range(pieces * ROWS):
        read, written = shorts(reads[i], depth), words(to, depth)
        for k in range(depth):
            written[k] = np.int32(read[k]) << 16
        reads[i] = to
        to += 4 * depth
    return to
