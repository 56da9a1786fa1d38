"""A gate by kernels/gate.cu: two launches where torch takes some forty and passes of the frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.kernels import number_of, strides_of
from deltaconvert.gate import Gate, Watch

ROWS, THREADS = 16, 256  # of kernels/gate.cu


def fits(watch: Watch) -> bool:
    """Whether each pixel is decided by what is near it and now: no noise learnt, nothing counted over the frame."""
    gate = watch.gate
    plain = Gate(gate.smooth, peak=gate.peak, dilate=gate.dilate, weak=gate.weak, refresh=gate.refresh)
    return not isinstance(watch.threshold, Tensor) and watch.threshold > 0 and gate == plain


class FastGate:
    """The gate of a frame's edge."""

    def __init__(self, backend: Any, edge: Any, watch: Watch):
        self._backend, self._edge, self._watch = backend, edge, watch
        bits = edge.marks.bits
        self._planes = torch.zeros(3, *bits.shape, dtype=torch.int32, device=bits.device)

    def run(self, frame: Tensor) -> None:
        """Store what is new of a frame (N C H W, of the edge's type), and mark it."""
        backend, edge, watch, gate = self._backend, self._edge, self._watch, self._watch.gate
        (n, channels, height, width), dtype = edge.values.shape, edge.values.dtype
        blocks = -(-height // ROWS) * edge.marks.bits.shape[2], n
        read = (frame, *strides_of(frame), edge.values, np.int32(edge.pitch), self._planes)
        sizes = [np.int32(size) for size in (n, channels, height, width)]
        limit: Any = watch.threshold
        limits = [number_of(limit * share, dtype) for share in (1, gate.peak, gate.weak)]
        backend.launch(
            backend.kernel("gate.cu", "look", dtype, RADIUS=gate.smooth // 2),
            blocks,
            THREADS,
            *read,
            watch.turn,
            watch.tick,
            np.int32(gate.refresh),
            *sizes,
            *limits,
        )
        backend.launch(
            backend.kernel("gate.cu", "take", dtype),
            blocks,
            THREADS,
            *read,
            np.int32(gate.dilate),
            edge.marks.bits,
            edge.marks.changed,
            edge.computed,
            *sizes,
        )
        if gate.refresh:
            watch.tick.add_(1)
