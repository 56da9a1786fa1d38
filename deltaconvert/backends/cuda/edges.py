"""Deltas: the values of a map, and where they changed."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda.gates import Looks, has_kernels
from deltaconvert.backends.cuda.kernels import number_of, strides_of
from deltaconvert.backends.cuda.launches import THREADS, blocks_of
from deltaconvert.backends.cuda.layout import pitch_of, runs_begin, vector_of
from deltaconvert.backends.cuda.marks import Listed, Marks
from deltaconvert.backends.cuda.tuning import boxes
from deltaconvert.backends.reference import fill_unseen, nonfinite_of
from deltaconvert.gate import Watch, awake_but

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend


class Edge:
    """One delta: values (N, C, H, W; channels last in memory, a pixel every `pitch` values) and marks."""

    is_kept = True

    def __init__(
        self,
        kept: Map,
        memory: Tensor | None = None,
        is_part: bool = False,
        joins: bool = False,
        passes: bool = False,
    ):
        """memory: N H W C, if it is part of a larger map; is_part: the memory belongs to another edge; joins: other
        edges are parts of it. passes: see `passing.py`."""
        n, channels, height, width = kept.shape
        self.threshold = kept.threshold
        # Side, H, W: each pixel is the mean of a box of a map of that size.
        self.of_boxes: tuple[int, int, int] | None = None
        self.beside = 0  # bytes that its step keeps beside it
        self.planes: Planes | None = None  # its values as a dense map, if they are needed
        # Until the first frame: where it can change if one of `tuning.boxes` changes.
        self.expected: Any = None
        if memory is None:
            pitch = pitch_of(channels, kept.dtype)
            memory = torch.zeros(n, height, width, pitch, dtype=kept.dtype, device=kept.device)
        self.pitch, self.is_part, self._joins = memory.stride(2), is_part, joins
        self.passes = passes and self.pitch == channels
        self.values = memory[..., :channels].permute(0, 3, 1, 2)
        self.marks: Marks
        self.computed: Tensor  # int32 (1), pixels that this frame computed
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        if self.is_kept and not self._joins:  # else its parts are filled, and what lies between them stays 0
            fill_unseen(self.values[streams])

    def put(self, stream: int, values: Tensor) -> None:
        """Go on from `values` (C H W)."""
        self.values[stream] = values
        if self.planes is not None:
            self.planes.put(stream, values)

    def pass_on(self, memory: Tensor) -> None:
        """Use memory that other edges use as well, which the next step overwrites."""
        self.values, self.is_kept = memory, False

    @property
    def is_weighted(self) -> bool:
        """Each channel has a threshold of its own."""
        return isinstance(self.threshold, Tensor)

    @cached_property
    def limits(self) -> Tensor | np.generic:
        """The threshold as kernels take it: a number, below 0 if there is none; or one for each channel."""
        if not isinstance(self.threshold, Tensor):
            return number_of(-1.0 if self.threshold is None else self.threshold, self.values.dtype)
        whole = -self.values.shape[1] % 8
        number = torch.float64 if self.values.dtype == torch.float64 else torch.float32
        return F.pad(self.threshold.to(self.values.device, number), (0, whole))

    @property
    def mask(self) -> Tensor:
        return self.marks.dense()

    @property
    def changed(self) -> bool:
        """Always true: to find out would be to wait for the device."""
        return True

    def dense(self) -> Tensor:
        """The values N C H W, to be read only. For a step's edge it is the same tensor in every frame."""
        if self.planes is None:
            return self.values.clone(memory_format=torch.contiguous_format)
        return self.planes.current()

    def state_bytes(self) -> int:
        kept = self.beside + (0 if self.planes is None else self.planes.state_bytes())
        own = 0 if self.is_part or not self.is_kept else self.values.untyped_storage().nbytes()
        return own + self.marks.bits.nbytes + kept


class Planes:
    """The values of a step's edge as a dense map, N C H W. Only what a frame computed is copied."""

    def __init__(self, backend: Backend, edge: Edge, computed: Listed):
        self._backend, self._edge, self._computed = backend, edge, computed
        self._values: Tensor | None = None  # made when it is first needed

    def current(self) -> Tensor:
        edge = self._edge
        if edge.values.is_contiguous():  # maps of one pixel: the layouts are the same
            return edge.values
        if self._values is None:
            self._values = edge.values.clone(memory_format=torch.contiguous_format)
        _, channels, height, width = edge.values.shape
        vector = vector_of(edge.values.dtype)
        self._backend.launch(
            self._backend.kernel("planes.cu", "planes", edge.values.dtype, WIDTH=min(vector, edge.pitch)),
            (blocks_of(edge),),
            THREADS,
            edge.values,
            np.int32(edge.pitch),
            self._values,
            self._computed.places,
            self._computed.count,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
        )
        return self._values

    def put(self, stream: int, values: Tensor) -> None:
        if self._values is not None:
            self._values[stream] = values

    def state_bytes(self) -> int:
        return 0 if self._values is None else self._values.nbytes


class FrameEdge(Edge):
    """A delta that is made from dense values, or from bytes that become such values on the way.

    watch: the gate that decides what is new, if there is one. nonfinite: see backends/reference.py.
    """

    threshold: float

    def __init__(self, backend: Backend, kept: Map, watch: Watch | None):
        self.watch = watch
        super().__init__(kept)
        self.nonfinite = torch.zeros(kept.shape[0], dtype=torch.int64, device=kept.device)
        self._awake = torch.ones(kept.shape[0], dtype=torch.int32, device=kept.device)
        self.expected = boxes(kept.shape[2:], kept.device)
        self.marks = backend.marks(kept.shape, kept.device, backend.place)
        self.computed = backend.counter(1, kept.device)
        self._backend = backend
        self._looks = Looks(backend, self, watch) if watch is not None and has_kernels(watch) else None

    def sleep(self, streams: Collection[int]) -> None:
        """Until the next call, the images of these streams are those of the frame before."""
        if self.watch is not None:
            self.watch.sleep(streams)
            return
        self._awake.copy_(awake_but(streams, len(self._awake)), non_blocking=True)

    @property
    def is_by_kernels(self) -> bool:
        """Whether only our own kernels read the frame: these can be told its address."""
        return self.watch is None or self._looks is not None

    def run(self, frame: Tensor) -> None:
        if self._looks is not None:
            self._looks.run(frame)
        elif self.watch is not None:
            self._run_watched(self.watch, frame)
        else:
            self._compare(frame)
        self._backend.list_behind(self.marks)

    def _compare(self, frame: Tensor) -> None:
        n, channels, height, width = self.values.shape
        pixels, macros = 1, {"BYTES": int(frame.dtype == torch.uint8)}
        # Pixels of a thread: 8 bytes of each channel, 4 where they are bytes.
        run = min(4, 8 // frame.dtype.itemsize)
        last = channels > 1 and frame.stride(1) == 1 and frame.stride(3) == channels
        side_by_side = channels <= 4 and (last or frame.stride(3) == 1)
        if side_by_side and runs_begin(frame, run, (0, 2) if last else (0, 1, 2)):
            pixels, macros = run, {**macros, "PIXELS": run, "CHANNELS": channels, "LAST": int(last)}
        self._backend.launch(
            self._backend.kernel("sparsify.cu", "sparsify", self.values.dtype, **macros),
            (-(-height * self.marks.bits.shape[2] * 32 // (THREADS * pixels)), n),
            THREADS,
            *self._backend.where(frame),
            *strides_of(frame),
            self.values,
            np.int32(self.pitch),
            self._awake,
            self.marks.bits,
            self.marks.changed,
            self.computed,
            self.nonfinite,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            number_of(self.threshold, self.values.dtype),
        )

    def _run_watched(self, watch: Watch, frame: Tensor) -> None:
        """Compare a frame by a gate, with torch, inside the graph."""
        frame, mask = watch.look(frame.to(self.values.dtype), self.values)
        self.values.copy_(torch.where(mask, frame, self.values))
        self.nonfinite.add_(nonfinite_of(frame, mask))
        self.marks.put(mask)
        self.computed.fill_(mask.numel())
