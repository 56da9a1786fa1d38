"""3x3 convolutions by Winograd's way F(2x2, 3x3): four pixels in a square take 16 products where they had 36."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.chains import SHARES, Chain, Stage, multiplies_pairs
from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Window

GROUP = 8  # blocks of squares that go together
FEWEST_CHANNELS = 16
# The weights of one tap become those of 4 numbers in a line: G of the paper.
SPREAD = torch.tensor(
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64
)


def suits(stage: Stage, window: Window | None) -> bool:
    """The candidates of a 3x3 are themselves squares of 3x3, so at worst as many products are made as without it."""
    from deltaconvert.backends.cpu.native.vectors import LANES

    conv = stage.conv
    channels, depth = conv.weight.shape[:2]
    geometry = (conv.weight.shape[2:], conv.stride, conv.dilation, conv.groups)
    return (
        window is not None
        and not multiplies_pairs(conv)
        and geometry == ((3, 3), (1, 1), (1, 1), 1)
        and channels % (2 * LANES) == depth % LANES == 0
        and min(channels, depth) >= FEWEST_CHANNELS
    )


class Winograd(Chain):
    """A chain whose first stage is such a convolution."""

    in_order = True

    def __init__(self, stages: Sequence[Stage], window: Window, scratch: Callable[[int], int]):
        from deltaconvert.backends.cpu.native import squares as q

        self._q = q
        channels, depth = stages[0].conv.weight.shape[:2]
        super().__init__(stages, window, scratch, q.SQUARE * GROUP)
        squares = GROUP * q.ROWS
        read_apart, products_apart = (_apart(4 * squares * width) for width in (depth, q.WIDTH))
        self._own = np.zeros(q.FIELDS, dtype=np.int64)
        self._own[q.CHAIN], self._own[q.GROUP] = self._job.ctypes.data, GROUP
        self._own[q.READ_APART], self._own[q.PRODUCTS_APART] = read_apart, products_apart
        # As `share_squares` cuts it up, before what the stages behind take.
        size = q.READ * (read_apart + products_apart) + 4 * channels + 8 * (q.READ + 5 * squares * q.SQUARE)
        self._job[j.SCRATCH_BYTES] += -(-size // 64) * 64
        self._plane = -(-window.out_size[0] // 2) * -(-window.out_size[1] // 2)

    def _widened_of(self, taps: int) -> int:
        return super()._widened_of(0)  # what the first stage reads is widened as it is spread

    def _share(self, threads: int, pixels: Tensor | None, count: int) -> None:
        q, job, own = self._q, self._job, self._own
        height, breadth = (int(job[place]) for place in (j.OUT_HEIGHT, j.OUT_BREADTH))
        if pixels is None:
            own[q.SQUARES], own[q.COUNT] = 0, count // (height * breadth) * self._plane
        else:
            found = np.empty((count, q.SQUARE_FIELDS), dtype=np.int64)
            own[q.COUNT] = q.listed_squares(pixels.numpy(), height, breadth, found)
            own[q.SQUARES] = found.ctypes.data
        blocks = -(-int(own[q.COUNT]) // q.ROWS)
        q.share_squares(blocks, min(int(own[q.GROUP]), -(-blocks // (SHARES * threads))), own.ctypes.data)

    def _panels(self, conv: Conv2d) -> Any:
        if conv.weight.shape[2:] == (1, 1):
            return super()._panels(conv)
        q, (channels, depth) = self._q, conv.weight.shape[:2]
        spread = torch.einsum("ai,bj,ocij->abco", SPREAD, SPREAD, conv.weight.double()).float()
        weight = spread.reshape(q.READ, depth, channels).numpy()
        bias = np.zeros(channels, np.float32) if conv.bias is None else conv.bias.float().numpy()
        found = []
        for column in range(0, channels, q.WIDTH):
            part = slice(column, column + q.WIDTH)
            own, own_bias = np.ascontiguousarray(weight[:, :, part]), bias[part].copy()
            found.append((column, 2, self._address(own), self._address(own_bias)))
        return np.array(found, dtype=np.int64)


def _apart(size: int) -> int:
    """An odd number of lines of the cache: what lies so far apart does not fall on one place of it."""
    lines = -(-size // 64)
    return 64 * (lines + 1 - lines % 2)
