"""A ceiling on what changes in a frame, by kernels/ceiling.cu: two launches between those of a gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.gate import TILE, Watch

THREADS = 256
CHOOSERS = 1024  # threads that choose the tiles of a stream


class Ceiling:
    """Which of the tiles of a gate's frame may change. How long they waited is kept by the watch."""

    def __init__(self, backend: Any, edge: Any, watch: Watch):
        self._backend, self._edge, self._watch = backend, edge, watch
        n, _, height, _ = edge.values.shape
        slots, device = (n, -(-height // TILE), 2 * edge.marks.bits.shape[2]), edge.values.device
        self._claims, self._leads = (
            torch.zeros(slots, dtype=watch.age.dtype, device=device) for _ in range(2)
        )
        self._pixels = torch.zeros(slots, dtype=torch.int32, device=device)
        self.choice = torch.zeros(slots, dtype=torch.uint8, device=device)  # as kernels/ceiling.cuh says
        self._shape = [np.int32(size) for size in edge.values.shape[1:]]

    def choose(self, pixels: tuple[Any, ...], other: Tensor, macros: dict[str, int]) -> None:
        """pixels: of the frame and what is stored, as kernels of gates take them; other: where any bit differs."""
        watch, marks, dtype = self._watch, self._edge.marks, self._edge.values.dtype
        n, down, across = self.choice.shape
        refresh = np.int32(watch.gate.refresh)
        self._backend.launch(
            self._backend.kernel("ceiling.cu", "claim", dtype, **macros),
            (-(-down * across * 16 // THREADS), n),
            THREADS,
            *pixels,
            marks.bits,
            other,
            watch.age,
            watch.ticks,
            self._claims,
            self._pixels,
            *self._shape,
            refresh,
        )
        self._backend.launch(
            self._backend.kernel("ceiling.cu", "choose", dtype, KEYS=-(-down * across // CHOOSERS)),
            (1, n),
            CHOOSERS,
            watch.awake,
            self._claims,
            self._pixels,
            self._leads,
            watch.age,
            self.choice,
            marks.changed,
            watch.ticks,
            *self._shape[1:],
            np.int32(watch.most),
            np.int32(watch.block),
            refresh,
        )
