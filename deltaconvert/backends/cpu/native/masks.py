"""From the mask of what changed to the mask of what a window leads it to, in a loop on torch's threads.

Torch takes a pass of the map for each tap. 360x640 pixels, 3x3, on a Zen 3 core: 0.12 ms, by torch 0.2; 45x80: 0.02
and 0.06. To follow the list of changed pixels took as long where 5 % change, and ten times where 40 % do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.native.machine_code import shared
from deltaconvert.backends.cpu.native.threads import pool
from deltaconvert.reach import Window

GRAIN = 16384  # pixels that a thread takes at a time


class Spread:
    """window.spread in one walk, of a window that is neither transposed nor has orphans."""

    def __init__(self, window: Window):
        self._size = window.out_size
        numbers = (window.kernel, window.stride, window.padding, window.dilation)
        self._geometry = np.array(numbers, dtype=np.int64)

    def __call__(self, mask: Tensor, onto: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
        """bool (N, 1, H, W) -> bool (N, 1, H', W'). onto: a mask of that size, whose pixels are taken along.

        pixels: the mask's, where they are listed: other lines than theirs are not looked at.
        """
        (height, width), streams = self._size, len(mask)
        out = torch.empty(streams, 1, height, width, dtype=torch.bool)
        arrays = (x.numpy() for x in (mask, out, out[:0] if onto is None else onto))
        lines = np.empty((pool().count, mask.shape[3]), dtype=np.uint8)
        most = mask.numel()
        first, last = (0, most) if pixels is None else (int(pixels.numpy().min()), int(pixels.numpy().max()))
        some = first // mask.shape[3], last // mask.shape[3]
        _spread(streams * height, max(1, GRAIN // width), *arrays, self._geometry, lines, *some)
        return out


@shared
def _spread(
    thread: int,
    first: int,
    last: int,
    mask: Any,
    out: Any,
    onto: Any,
    geometry: Any,
    lines: Any,
    top: int,
    bottom: int,
) -> None:
    """Lines `first` to `last` of `out`: the lines that each reads are joined, and then the columns.

    top, bottom: the first and the last line of the mask with any pixel.
    """
    (kernel_y, kernel_x), (stride_y, stride_x), (padding_y, padding_x), (dilation_y, dilation_x) = geometry
    read, written, more, line = mask.view(np.uint8), out.view(np.uint8), onto.view(np.uint8), lines[thread]
    height, width = out.shape[2], out.shape[3]
    for at in range(first, last):
        stream, y = at // height, at % height
        own = written[stream, 0, y]
        if len(more):
            own[:] = more[stream, 0, y]
        else:
            own[:] = 0
        above = stream * mask.shape[2] + y * stride_y - padding_y
        if above > bottom or above + (kernel_y - 1) * dilation_y < top:
            continue
        line[:] = 0
        for tap in range(kernel_y):
            row = y * stride_y - padding_y + tap * dilation_y
            if row >= 0 and row < mask.shape[2]:
                others = read[stream, 0, row]
                for x in range(len(line)):
                    line[x] |= others[x]
        some = np.uint8(0)
        for x in range(len(line)):
            some |= line[x]
        if some:
            for tap in range(kernel_x):
                offset = tap * dilation_x - padding_x
                # The columns that read one of the map by this tap.
                begin = max(0, -(offset // stride_x))
                end = min(width, (len(line) - 1 - offset) // stride_x + 1)
                if end <= begin:
                    continue
                some_of_them, others = own[begin:end], line[begin * stride_x + offset :]
                if stride_x == 1:
                    for x in range(len(some_of_them)):
                        some_of_them[x] |= others[x]
                else:
                    for x in range(len(some_of_them)):
                        some_of_them[x] |= others[x * stride_x]
