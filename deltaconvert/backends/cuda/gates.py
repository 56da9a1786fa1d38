"""Gates by kernels/gate.cu: three launches a frame, one more each for boxes and for noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.kernels import number_of, strides_of
from deltaconvert.gate import Watch

THREADS = 256
SHARED_BYTES = 48 << 10  # that a kernel has without asking
DEEP = 4  # of kernels/gate_look.cuh: rows of pixels that a warp looks at
TILES = 8  # of kernels/gate_boxes.cu: that a block asks about
BAND, ACROSS = 16, 64  # of kernels/gate.cu: rows and words of them that a block of `decide` has


def has_kernels(watch: Watch) -> bool:
    """A ceiling on what changes sorts tiles: torch does that."""
    return not isinstance(watch.threshold, Tensor) and watch.gate.max_density == 1


class Looks:
    """A watch at work on the frames of an edge, by kernels. What it keeps is the watch's."""

    def __init__(self, backend: Any, edge: Any, watch: Watch):
        self._backend, self._edge, self._watch = backend, edge, watch
        self._bits = [torch.zeros_like(edge.marks.bits) for _ in range(3)]  # moved, near, other
        n, _, height, width = edge.values.shape
        smooths = watch.gate.smooth > 1
        self._cells = torch.zeros(  # of the smallest side that `look` takes
            (n, -(-height // 2), -(-width // 2)) if smooths else 0,
            dtype=watch.noise.dtype,
            device=edge.values.device,
        )

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
        macros = {"BYTES": int(frame.dtype == torch.uint8), "HOLD": int(gate.nonfinite == "hold")}
        macros |= {"PACKED": int(edge.pitch == 4)}
        weak, noise = int(gate.weak > 0 and not exact), int(watch.noise.numel() > 0)
        rules = {"SMOOTH": smooth, "RECENT": recent, "WEAK": weak, "NOISE": noise, **macros}
        moved, near, other = self._bits
        limits = [number_of(limit * times, wide) for times in (1, gate.peak, gate.weak)]
        limits += [number_of(gate.noise / (smooth * root), wide), number_of(root, wide)]
        dtype, launch = edge.values.dtype, self._backend.launch
        at_once = channels if edge.pitch == 4 else 1
        launch(
            self._backend.kernel("gate.cu", "look", dtype, CHANNELS=at_once, **rules),
            (-(-words * 32 // THREADS), n, -(-height // DEEP)),
            THREADS,
            *pixels,
            moved,
            near,
            other,
            self._cells,
            watch.counts,
            watch.noise,
            watch.mean,
            watch.then,
            watch.seen,
            *shape,
            *limits,
            number_of(2 / (recent + 1), wide),
        )
        if smooth > 1:
            rows = 16 if smooth > 15 or wide == torch.float64 else 32
            at_once = _at_once(channels, smooth, rows, wide)
            launch(
                self._backend.kernel("gate_boxes.cu", "boxes", dtype, ROWS=rows, CHANNELS=at_once, **rules),
                (-(-words * -(-height // rows) // TILES), n),
                THREADS,
                *pixels,
                moved,
                near,
                other,
                self._cells,
                watch.noise,
                watch.mean,
                watch.then,
                watch.seen,
                *shape,
                *limits,
            )
        if noise:
            launch(
                self._backend.kernel("gate.cu", "learn", dtype, **macros),
                (-(-height * width // THREADS), n),
                THREADS,
                *pixels,
                moved,
                watch.last,
                watch.noise,
                *shape,
            )
        launch(
            self._backend.kernel("gate.cu", "decide", dtype),
            (-(-height // BAND) * -(-words // ACROSS), n),
            THREADS,
            watch.awake,
            moved,
            near if weak else other,
            other,
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
    """Channels that `boxes` smooths at a time: all of them, if their sums have room in a block's shared memory."""
    around = smooth // 2
    across = 32 + 2 * (-(-around // 4) * 4)
    needed = wide.itemsize * channels * across * (2 * rows + 2 * around) + 16 * rows + 512
    return channels if needed <= SHARED_BYTES else 1
