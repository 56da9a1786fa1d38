"""cuda: kernels/*.cu on the changed pixels, a frame as one CUDA graph.

State, masks, lists of pixels and their counts stay on the device, and nothing in a frame waits for it: grids are fixed
when the graph is captured, and a kernel walks as much of its list as there is. A map is N H W C in memory.

A step is two launches: `spread` lists the candidates, a second kernel computes and stores them. Steps whose candidates
are another step's by construction share its list. What has no kernel of its own is computed whole by torch, inside the
graph, and its candidates are stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.heads import SHARED_BYTES, Head, head_of
from deltaconvert.backends.cuda.kernels import TYPES, Kernel, why_not
from deltaconvert.backends.cuda.recording import Recording
from deltaconvert.backends.cuda.tail import NoKernel, Tail, device_bytes
from deltaconvert.backends.reference import fill_unseen
from deltaconvert.errors import InputError
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

__all__ = ["NAME", "Backend", "why_not"]

NAME = "cuda"
PASSES = ()
THREADS = 256
COUNTERS = 1 << 18
# Blocks of the kernels that walk a list: enough to fill the device, few enough that a still frame's cost nothing.
BLOCKS_PER_PROCESSOR = 8
_KINDS = {Pixel: 0, Sources: 3, Everything: 4}  # the enum of kernels/masks.cu; windows are 1, transposed 2


@dataclass(eq=False)
class Marks:
    """The changed pixels of an edge.

    mask: bool (N, 1, H, W); changed: int32 (N), how many of each stream. list: int32, the places of them, and count:
    int32 (1), where a step listed them. covers: Marks whose pixels are always among these.
    """

    mask: Tensor
    changed: Tensor
    list: Tensor | None = None
    count: Tensor | None = None
    covers: frozenset[Marks] = frozenset()


class Edge:
    """One delta: values (N, C, H, W; channels last in memory, a pixel every `pitch` values) and marks."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, threshold: float | None):
        n, channels, height, width = shape
        self.threshold, self.pitch = threshold, pitch_of(channels, dtype)
        memory = torch.zeros(n, height, width, self.pitch, dtype=dtype, device=device)
        self.values = memory[..., :channels].permute(0, 3, 1, 2)
        self.marks: Marks
        self.computed: Tensor  # int32 (1), pixels that this frame computed
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        fill_unseen(self.values[streams])

    def put(self, stream: int, values: Tensor) -> None:
        """Go on from `values` (C H W)."""
        self.values[stream] = values

    @property
    def mask(self) -> Tensor:
        return self.marks.mask

    @property
    def changed(self) -> bool:
        """Always true: to know it would wait for the device."""
        return True

    def dense(self) -> Tensor:
        return self.values.clone(memory_format=torch.contiguous_format)

    def state_bytes(self) -> int:
        return self.values.untyped_storage().nbytes() + self.mask.nbytes


class FrameEdge(Edge):
    """A delta that dense values come in by."""

    def __init__(
        self, backend: Backend, shape: Shape, dtype: torch.dtype, device: torch.device, threshold: float
    ):
        super().__init__(shape, dtype, device, threshold)
        self.marks = backend.marks(shape, device)
        self.computed = backend.counter(1, device)
        self._backend = backend

    def run(self, frame: Tensor) -> None:
        n, channels, height, width = self.values.shape
        pixels, macros = 1, {}
        run = 8 // frame.dtype.itemsize  # pixels of a thread: 8 bytes of each channel
        apart = (frame.data_ptr() // frame.dtype.itemsize, *frame.stride()[:3])
        if channels <= 4 and frame.stride(3) == 1 and all(step % run == 0 for step in (width, *apart)):
            pixels, macros = run, {"PIXELS": run, "CHANNELS": channels}
        self._backend.kernel("masks.cu", "sparsify", frame.dtype, **macros)(
            (-(-height * width // (THREADS * pixels)), n),
            THREADS,
            frame,
            *_strides(frame),
            self.values,
            np.int32(self.pitch),
            self.mask,
            self.marks.changed,
            self.computed,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            _number(self.threshold, frame.dtype),
        )


class Backend:
    """Makes the steps of one program and plays its frames."""

    def __init__(self) -> None:
        self._counters: Tensor | None = None
        self._used = 0
        self._counted: Tensor | None = None
        self._edges: list[Edge] = []
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._recording: Recording | None = None
        self.kernel = lru_cache(maxsize=None)(_kernel)

    def sparsify(self, shape: Shape, dtype: torch.dtype, device: torch.device, threshold: float) -> FrameEdge:
        with torch.cuda.device(device):
            edge = FrameEdge(self, shape, dtype, device, threshold)
        self._edges.append(edge)
        return edge

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        threshold: float | None,
        notes: dict[str, Any],
    ) -> Step:
        edge = Edge(shape, dtype, device, threshold)
        self._edges.append(edge)
        with torch.cuda.device(device):
            return Step(self, operator, reaches, inputs, edge)

    def counter(self, length: int, device: torch.device) -> Tensor:
        """int32 (length), 0 at the start of every frame."""
        if self._counters is None:
            self._counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        first, self._used = self._used, self._used + length
        if self._used > COUNTERS:
            raise InputError(
                "the network has too many nodes for so many streams: convert it for a smaller batch"
            )
        return self._counters[first : self._used]

    def marks(self, shape: Shape, device: torch.device) -> Marks:
        n, _, height, width = shape
        marks = Marks(
            torch.zeros(n, 1, height, width, dtype=torch.bool, device=device), self.counter(n, device)
        )
        marks.covers = frozenset((marks,))
        return marks

    def scratch(self, edge: Edge) -> Tensor:
        """Memory of the shape and strides of an edge's values, the same for every step: valid until the next call."""
        n, channels, height, width = edge.values.shape
        size = n * height * width * edge.pitch
        kept = self._scratch.get(edge.values.dtype)
        if kept is None or kept.numel() < size:
            kept = self._scratch[edge.values.dtype] = edge.values.new_empty(size)
        return kept[:size].view(n, height, width, edge.pitch)[..., :channels].permute(0, 3, 1, 2)

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        if self._recording is None:
            device = next(value.device for value in frame.values if isinstance(value, Tensor))
            self._recording = Recording(device, self._start, self._finish)
        self._recording.play(steps, frame)

    @property
    def outside(self) -> list[str]:
        """Nodes that the graph could not hold; known after the first frame."""
        return [] if self._recording is None else self._recording.outside

    def counts(self, edges: Sequence[Any]) -> Tensor:
        assert self._counted is not None
        return self._counted

    def _start(self) -> None:
        if self._counters is not None:
            self._counters[: self._used].zero_()

    def _finish(self) -> None:
        """Gather the counts of all edges; part of the graph."""
        if self._counters is None:
            return
        if self._counted is None:
            at = [
                [edge.computed.storage_offset() for edge in self._edges],
                [edge.marks.changed.storage_offset() for edge in self._edges],
                [len(edge.marks.changed) for edge in self._edges],
            ]
            self._places = torch.tensor(at, dtype=torch.int32, device=self._counters.device)
            self._counted = torch.zeros(len(self._edges), 2, dtype=torch.int64, device=self._counters.device)
        edges = len(self._edges)
        self.kernel("masks.cu", "tally", torch.float32)(
            (-(-edges // THREADS),), THREADS, self._counters, *self._places, self._counted, np.int32(edges)
        )


class Candidates:
    """The pixels that a step computes, as a list; from its inputs' marks by its reaches."""

    def __init__(self, backend: Backend, reaches: Sequence[Reach], inputs: Sequence[Edge], edge: Edge):
        n, _, height, width = edge.values.shape
        device = edge.values.device
        pairs = _needed(list(zip(reaches, (source.marks for source in inputs), strict=True)))
        self._kernel: Kernel | None = None
        first = pairs[0][1]
        if (
            len(pairs) == 1
            and isinstance(pairs[0][0], Pixel)
            and edge.threshold is None
            and first.list is not None
        ):
            assert first.count is not None
            edge.marks, self.list, self.count = first, first.list, first.count
            return
        edge.marks = backend.marks((n, 1, height, width), device)
        self.list = torch.zeros(n * height * width, dtype=torch.int32, device=device)
        self.count = backend.counter(1, device)
        if edge.threshold is None:
            edge.marks.list, edge.marks.count = self.list, self.count
            edge.marks.covers |= frozenset().union(
                *(
                    marks.covers
                    for reach, marks in zip(reaches, (s.marks for s in inputs), strict=True)
                    if _keeps_places(reach)
                )
            )
        self._kernel = backend.kernel("masks.cu", "spread", edge.values.dtype)
        self._inputs = len(pairs)
        packed, self._tables = zip(*(pack(reach, marks) for reach, marks in pairs), strict=True)
        self._reaches = device_bytes(b"".join(packed), device)
        self._grid = (-(-height * width // THREADS), n)
        self._edge = edge

    def run(self) -> None:
        if self._kernel is None:
            return
        marks, (height, width) = self._edge.marks, self._edge.values.shape[2:]
        self._kernel(
            self._grid,
            THREADS,
            self._reaches,
            np.int32(self._inputs),
            marks.mask,
            np.int32(self._edge.threshold is None),
            marks.changed,
            self.list,
            self.count,
            np.int32(height),
            np.int32(width),
        )


class Step:
    """One operator: list the candidates, compute and store them."""

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        edge: Edge,
    ):
        self.operator, self.inputs, self.edge = operator, inputs, edge
        self.candidates = Candidates(backend, reaches, inputs, edge)
        edge.computed = self.candidates.count
        self._backend = backend
        try:
            head, tail = head_of(operator, reaches, inputs, edge)
        except NoKernel:
            self._compute = self._whole
        else:
            self._launch = _Launch(backend, head, tail, edge)
            self._compute = self._listed

    def rebuild(self) -> None:
        """Nothing is kept beside the edges."""

    def run(self) -> None:
        self.candidates.run()
        self._compute()

    def _listed(self) -> None:
        """Candidates alone. A threshold decides about whole pixels, so where there is one they wait in scratch."""
        edge = self.edge
        if edge.threshold is None:
            self._launch(edge.values, self.candidates)
        else:
            fresh = self._backend.scratch(edge)
            self._launch(fresh, self.candidates)
            self._commit(fresh)

    def _whole(self) -> None:
        """By torch; cuDNN's faster algorithms for transposed convolutions add in any order."""
        with torch.backends.cudnn.flags(
            enabled=True, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            self._commit(self.operator(*(source.values for source in self.inputs)))

    def _commit(self, fresh: Tensor) -> None:
        """Store the candidates of a map that changed, and mark them."""
        edge = self.edge
        _, channels, height, width = edge.values.shape
        self._backend.kernel("masks.cu", "commit", edge.values.dtype)(
            (blocks_of(edge),),
            THREADS,
            fresh,
            *_strides(fresh),
            edge.values,
            np.int32(edge.pitch),
            edge.mask,
            edge.marks.changed,
            self.candidates.list,
            self.candidates.count,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            _number(-1.0 if edge.threshold is None else edge.threshold, fresh.dtype),
        )


class _Launch:
    """A computing kernel with its parameters on the device."""

    def __init__(self, backend: Backend, head: Head, tail: Tail, edge: Edge):
        _, self._channels, self._height, self._width = edge.values.shape
        self._pitch, self._threads = edge.pitch, head.threads
        vector = max(1, 16 // edge.values.dtype.itemsize)
        macros = {**head.macros, **tail.macros(), "WIDTH": min(vector, edge.pitch)}
        self._kernel = backend.kernel(head.source, head.name, edge.values.dtype, head.shared_bytes, **macros)
        self._head, self._operands = device_bytes(head.packed, edge.values.device), tail.packed()
        self._kept = (head, tail)
        self._blocks = blocks_of(edge, head.shared_bytes) // head.cluster * head.cluster

    def __call__(self, out: Tensor, candidates: Candidates) -> None:
        self._kernel(
            (self._blocks,),
            self._threads,
            self._head,
            self._operands,
            out,
            np.int32(self._pitch),
            np.int32(self._channels),
            candidates.list,
            candidates.count,
            np.int32(self._height),
            np.int32(self._width),
        )


def pitch_of(channels: int, dtype: torch.dtype) -> int:
    """Values from one pixel to the next: whole vectors of 16 bytes, so that any of them can be read at once; four
    values where a frame has fewer channels."""
    if channels <= 4:
        return 4
    vector = max(1, 16 // dtype.itemsize)
    return -(-channels // vector) * vector


def pack(reach: Reach, marks: Marks) -> tuple[bytes, list[Tensor]]:
    """struct Reach of kernels/masks.cu, and the tables whose addresses it holds."""
    height, width = marks.mask.shape[2:]
    window, taps, tables = (0,) * 8, (0, 0), []
    if isinstance(reach, Window):
        kind = 2 if reach.transposed else 1
        window = (*reach.kernel, *reach.stride, *reach.padding, *reach.dilation)
    else:
        kind = _KINDS[type(reach)]  # type: ignore[index]
    if isinstance(reach, Sources):
        tables = [t.to(marks.mask.device, torch.int32).contiguous() for t in (reach.rows, reach.cols)]
        taps = (reach.rows.shape[1], reach.cols.shape[1])
    addresses = [t.data_ptr() for t in (marks.mask, marks.changed, *tables)]
    numbers = (kind, height, width, *window, *taps, 0)
    return struct.pack("=4Q14i", *addresses, *[0] * (4 - len(addresses)), *numbers), tables


def _needed(pairs: list[tuple[Reach, Marks]]) -> list[tuple[Reach, Marks]]:
    """Without the inputs, read pixel by pixel, whose changes are among those of another such input."""
    kept: list[tuple[Reach, Marks]] = []
    for reach, marks in pairs:
        if isinstance(reach, Pixel):
            if any(isinstance(r, Pixel) and marks in m.covers for r, m in kept):
                continue
            kept = [(r, m) for r, m in kept if not (isinstance(r, Pixel) and m in marks.covers)]
        kept.append((reach, marks))
    return kept


def _keeps_places(reach: Reach) -> bool:
    """Every changed pixel of the input is a candidate itself."""
    if isinstance(reach, Window):
        offsets = zip(reach.kernel, reach.padding, reach.dilation, strict=True)
        return (
            not reach.transposed
            and reach.stride == (1, 1)
            and reach.in_size == reach.out_size
            and all(p % d == 0 and p // d < k for k, p, d in offsets)
        )
    return isinstance(reach, Pixel)


def _kernel(source: str, name: str, dtype: torch.dtype, shared_bytes: int = 0, **macros: Any) -> Kernel:
    # Maps of integers are moved, and compared by their bits: any type of their size will do.
    kind = TYPES[dtype] if dtype in TYPES else {8: 0, 4: 1, 2: 2, 1: 4}[dtype.itemsize]
    return Kernel(source, name, {"TYPE": kind, **macros}, shared_bytes)


def _strides(x: Tensor) -> tuple[np.int64, ...]:
    return tuple(np.int64(stride) for stride in x.stride())


def _number(value: float | None, dtype: torch.dtype) -> np.floating:
    assert value is not None
    return np.float64(value) if dtype.itemsize == 8 else np.float32(value)


def blocks_of(edge: Edge, shared_bytes: int = 0) -> int:
    """Blocks that walk a list: as many as run at a time."""
    at_once = BLOCKS_PER_PROCESSOR if shared_bytes == 0 else max(1, SHARED_BYTES // shared_bytes)
    return at_once * torch.cuda.get_device_properties(edge.values.device).multi_processor_count
