"""Gates by kernels/gate.cu: three launches a frame, one more where frames are averaged, two under a ceiling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.ceilings import Ceiling
from deltaconvert.backends.cuda.kernels import number_of, strides_of
from deltaconvert.backends.cuda.layout import runs_begin
from deltaconvert.gate import Watch

THREADS = 256
SHARED_BYTES = 48 << 10  # that a kernel has without asking
BAND, ACROSS = 16, 64  # of kernels/gate.cu: rows and words of them that a block of `decide` has


def has_kernels(watch: Watch) -> bool:
    """Not where each stream has a threshold of its own."""
    return not isinstance(watch.threshold, Tensor)


class Looks:
    """A watch at work on the frames of an edge, by kernels. What it keeps is the watch's."""

    def __init__(self, backend: Any, edge: Any, watch: Watch):
        self._backend, self._edge, self._watch = backend, edge, watch
        self._bits = [torch.zeros_like(edge.marks.bits) for _ in range(3)]  # moved, near, other
        exact, gate = watch.threshold == 0, watch.gate
        self._wide = torch.promote_types(edge.values.dtype, torch.float32)
        self._smooth, self._recent = (1, 1) if exact else (gate.smooth, gate.recent)
        self._learns = {"NOISE": int(watch.noise.numel() > 0), "WEAK": int(gate.weak > 0 and not exact)}
        self._rows = 16 if self._smooth > 15 or self._wide == torch.float64 else 32
        self._channels = _at_once(edge.values.shape[1], self._smooth, self._rows, self._wide)
        self._shape = [np.int32(size) for size in edge.values.shape[1:]]
        self._ceiling = Ceiling(backend, edge, watch) if gate.max_density < 1 else None

    def run(self, frame: Tensor) -> None:
        edge = self._edge
        where, strides = self._backend.where(frame), strides_of(frame)
        pixels = (*where, *strides, edge.values, np.int32(edge.pitch), self._watch.awake)
        macros = {
            "BYTES": int(frame.dtype == torch.uint8),
            "HOLD": int(self._watch.gate.nonfinite == "hold"),
            **self._order(frame),
            "PACKED": int(edge.pitch == 4),
        }
        if self._recent > 1:
            flat = frame.is_contiguous() and frame.data_ptr() % (4 * frame.itemsize) == 0
            self._average(pixels, {"FLAT": int(flat), "CHANNELS": self._channels, **macros})
        self._look(pixels, macros)
        self._decide()
        if self._ceiling is not None:
            self._ceiling.choose(pixels, self._bits[2], {name: macros[name] for name in ("BYTES", "HOLD")})
        self._take(pixels, macros)

    def _order(self, frame: Tensor) -> dict[str, int]:
        """In which order a frame's numbers lie, where four of them can be read at once."""
        channels = self._edge.values.shape[1]
        last = frame.stride(1) == 1 and frame.stride(3) == channels == self._channels
        last = last and runs_begin(frame, 4, (0, 2))
        fours = last or (frame.stride(3) == 1 and runs_begin(frame, 4, (0, 1, 2)))
        return {"FOURS": int(fours), "LAST": int(last)}

    def _average(self, pixels: tuple[Any, ...], macros: dict[str, int]) -> None:
        """The running mean of the frames so far."""
        n, _, height, width = self._edge.values.shape
        self._backend.launch(
            self._kernel("average", macros),
            (-(-height * width // (THREADS * 4)), n),
            THREADS,
            *pixels,
            self._watch.mean,
            self._watch.seen,
            *self._shape,
            number_of(2 / (self._recent + 1), self._wide),
        )

    def _look(self, pixels: tuple[Any, ...], macros: dict[str, int]) -> None:
        """Which pixels moved, are near to having moved, and are other than the stored ones at all."""
        watch, gate, wide, root = self._watch, self._watch.gate, self._wide, math.sqrt(self._recent)
        n, _, height, _ = self._edge.values.shape
        limit: Any = watch.threshold
        tile = {"SMOOTH": self._smooth, "ROWS": self._rows, "CHANNELS": self._channels}
        self._backend.launch(
            self._kernel("look", {"RECENT": self._recent, **tile, **self._learns, **macros}),
            (self._words * -(-height // self._rows), n),
            THREADS,
            *pixels,
            *self._bits,
            watch.last,
            watch.noise,
            watch.counts,
            watch.mean,
            watch.then,
            watch.seen,
            *self._shape,
            *(number_of(limit * times, wide) for times in (1, gate.peak, gate.weak)),
            number_of(gate.noise / (self._smooth * root), wide),
            number_of(root, wide),
        )

    def _decide(self) -> None:
        """Which of them are changes: with what they take along, and the tiles whose turn it is; those the ceiling
        adds, if there is one."""
        watch, marks = self._watch, self._edge.marks
        n, _, height, _ = self._edge.values.shape
        self._backend.launch(
            self._kernel("decide", {}),
            (-(-height // BAND) * -(-self._words // ACROSS), n),
            THREADS,
            watch.awake,
            *self._bits,
            marks.bits,
            marks.changed,
            watch.ticks,
            watch.seen,
            *self._shape[1:],
            np.int32(watch.gate.dilate),
            np.int32(0 if self._ceiling else watch.gate.refresh),
        )

    def _take(self, pixels: tuple[Any, ...], macros: dict[str, int]) -> None:
        """Store the changed pixels, as far as they may; all of them, of a stream in which so many changed."""
        edge, watch, cut = self._edge, self._watch, self._watch.gate.cut
        n, _, height, _ = edge.values.shape
        self._backend.launch(
            self._kernel("take", {"RECENT": self._recent, "CEILING": int(bool(self._ceiling)), **macros}),
            (-(-height * self._words // THREADS), n),
            THREADS,
            *pixels,
            edge.marks.bits,
            edge.marks.changed,
            edge.computed,
            edge.nonfinite,
            watch.ticks,
            watch.counts[1:],
            watch.mean,
            watch.then,
            watch.seen,
            *self._shape,
            np.float32(cut if cut < 1 else 2),
            self._bits[2],
            np.uint64(0) if self._ceiling is None else self._ceiling.choice,
        )

    @property
    def _words(self) -> int:
        """Words of marks in a row."""
        return self._edge.marks.bits.shape[2]

    def _kernel(self, name: str, macros: dict[str, int]) -> Any:
        return self._backend.kernel("gate.cu", name, self._edge.values.dtype, **macros)


def _at_once(channels: int, smooth: int, rows: int, wide: torch.dtype) -> int:
    """Channels that `look` smooths at a time: all of them, if their sums have room in a block's shared memory."""
    around = smooth // 2
    across = 32 + 2 * (-(-around // 4) * 4)
    needed = wide.itemsize * channels * across * (2 * rows + 2 * around) + 16 * rows + 512
    return channels if needed <= SHARED_BYTES else 1
