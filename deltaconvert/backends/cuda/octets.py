"""Lists of octets, eight pixels side by side, for convolutions whose neighbours share what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deltaconvert.backends.cuda.layout import STEP, depth_of
from deltaconvert.backends.cuda.marks import Listed
from deltaconvert.reach import Window

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend
    from deltaconvert.backends.cuda.edges import Edge

MOST = 1 << 27  # pixels: a word holds an octet's number and eight bits
BLOCK = 1024  # words of a mask


def fits_octets(operator: Any, window: Window | None, source: Any) -> bool:
    """Whether kernels/octets.cuh computes a convolution."""
    n, _, height, width = source.values.shape
    if window is None or tuple(operator.weight.shape[2:]) != (3, 3):
        return False
    plain = (*window.stride, *window.dilation, *window.padding) == (1, 1, 1, 1, 1, 1)
    pixel = depth_of(source) * source.values.dtype.itemsize
    return plain and pixel == STEP and width % 8 == 0 and n * height * width < MOST


class Octets:
    """The octets of the list that a kernel is given, made right before it."""

    def __init__(self, backend: Backend, edge: Edge):
        n, _, height, width = edge.values.shape
        device = edge.values.device
        self._words, self._width = n * height * -(-width // 32), width
        self._blocks = min(
            -(-self._words // BLOCK), 4 * torch.cuda.get_device_properties(device).multi_processor_count
        )
        self._backend = backend
        self.places = torch.zeros(n * height * width // 8, dtype=torch.int32, device=device)
        # How many octets, and how many blocks have read that number; the last one sets both to 0.
        self.counts = torch.zeros(2, dtype=torch.int32, device=device)

    def run(self, listed: Listed) -> None:
        assert listed.bits is not None
        self._backend.launch(
            self._backend.kernel("octets.cu", "octets", torch.float32),
            (self._blocks,),
            256,
            listed.bits,
            self.places,
            self.counts,
            *map(np.int32, (self._words, -(-self._width // 32), self._width)),
        )
