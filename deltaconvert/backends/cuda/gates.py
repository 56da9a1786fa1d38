"""Gates by kernels/gate.cu: three launches a frame, four where frames are averaged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.kernels import number_of, strides_of
from deltaconvert.backends.cuda.layout import runs_begin
from deltaconvert.gate import Watch

THREADS = 256
SHARED_BYTES = 48 << 10  # that a kernel has without asking
BAND, ACROSS = 16, 64  # of kernels/gate.cu: rows and words of them that a block of `decide` has


def has_kernels(watch: Watch) -> bool:
    """A ceiling on what changes sorts tiles: torch does that."""
    return not isinstance(watch.threshold, Tensor) and watch.gate.max_density == 1


class Looks:
    """A watch at work on the frames of an edge, by kernels. What it keeps is the watch's."""

    def __init__(self, backend: Any, edge: Any, watch: Watch):
        self._backend, self._edge, self._watch = backend, edge, watch
        self._bits = [torch.zeros_like(edge.marks.bits) for _ in range(3)]  # moved, near, other

    def run(self, frame: Tensor) -> None:
        edge, watch, gate = self._edge, self._watch, self._watch.gate
        n, channels, height, width = edge.values.shape
        wide = torch.promote_types(edge.values.dtype, torch.float32)
        limit: Any = watch.threshold
        exact = limit == 0
        smooth, recent = (1, 1) if exact else (gate.smooth, gate.recent)
        root = math.sqrt(recent)
        where, awake = (*self._backend.where(frame), *strides_of(frame)), watch.awake
        pixels = (*where, edge.values, np.int32(edge.pitch), awake)
        shape = [np.int32(size) for size in (channels, height, width)]
        words = edge.marks.bits.shape[2]
        rows = 16 if smooth > 15 or wide == torch.float64 else 32
        tile = {"SMOOTH": smooth, "ROWS": rows, "CHANNELS": _at_once(channels, smooth, rows, wide)}
        last = frame.stride(1) == 1 and frame.stride(3) == channels == tile["CHANNELS"]
        last = last and runs_begin(frame, 4, (0, 2))
        fours = last or (frame.stride(3) == 1 and runs_begin(frame, 4, (0, 1, 2)))
        macros = {"BYTES": int(frame.dtype == torch.uint8), "HOLD": int(gate.nonfinite == "hold")}
        macros |= {"FOURS": int(fours), "LAST": int(last), "PACKED": int(edge.pitch == 4)}
        learns = {"NOISE": int(watch.noise.numel() > 0), "WEAK": int(gate.weak > 0 and not exact)}
        dtype, launch = edge.values.dtype, self._backend.launch
        flat = frame.is_contiguous() and frame.data_ptr() % (4 * frame.itemsize) == 0
        if recent > 1:
            by_four = {"FLAT": int(flat), "CHANNELS": tile["CHANNELS"]}
            launch(
                self._backend.kernel("gate.cu", "average", dtype, **by_four, **macros),
                (-(-height * width // (THREADS * 4)), n),
                THREADS,
                *pixels,
                watch.mean,
                watch.seen,
                *shape,
                number_of(2 / (recent + 1), wide),
            )
        launch(
            self._backend.kernel("gate.cu", "look", dtype, RECENT=recent, **tile, **learns, **macros),
            (words * -(-height // rows), n),
            THREADS,
            *pixels,
            *self._bits,
            watch.last,
            watch.noise,
            watch.counts,
            watch.mean,
            watch.then,
            watch.seen,
            *shape,
            *(number_of(limit * times, wide) for times in (1, gate.peak, gate.weak)),
            number_of(gate.noise / (smooth * root), wide),
            number_of(root, wide),
        )
        launch(
            self._backend.kernel("gate.cu", "decide", dtype),
            (-(-height // BAND) * -(-words // ACROSS), n),
            THREADS,
            watch.awake,
            *self._bits,
            edge.marks.bits,
            edge.marks.changed,
            watch.ticks,
            watch.seen,
            *shape[1:],
            np.int32(gate.dilate),
            np.int32(gate.refresh),
        )
        launch(
            self._backend.kernel("gate.cu", "take", dtype, RECENT=recent, **macros),
            (-(-height * words // THREADS), n),
            THREADS,
            *pixels,
            edge.marks.bits,
            edge.marks.changed,
            edge.computed,
            watch.ticks,
            watch.counts[1:],
            watch.mean,
            watch.then,
            watch.seen,
            *shape,
            np.float32(gate.cut if gate.cut < 1 else 2),
        )


def _at_once(channels: int, smooth: int, rows: int, wide: torch.dtype) -> int:
    """Channels that `look` smooths at a time: all of them, if their sums have room in a block's shared memory."""
    around = smooth // 2
    across = 32 + 2 * (-(-around // 4) * 4)
    needed = wide.itemsize * channels * across * (2 * rows + 2 * around) + 16 * rows + 512
    return channels if needed <= SHARED_BYTES else 1
