"""cuda: kernels/*.cu on the changed pixels, a frame as one CUDA graph.

State, masks, lists of pixels and their counts stay on the device, and nothing in a frame waits for it: grids are fixed
when the graph is captured, and a kernel walks as much of its list as there is. A map is N H W C in memory.

Lists of candidates are made ahead, for all steps that a mask decides about (`marks.py`); a step is then one launch that
computes and stores its list. Steps whose candidates are another step's by construction share it. What has no kernel of
its own is computed whole by torch, inside the graph, and its candidates are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda.concats import join_concats
from deltaconvert.backends.cuda.convs import Head, blocks_at_once, pitch_of
from deltaconvert.backends.cuda.gates import Looks, has_kernels
from deltaconvert.backends.cuda.heads import head_of
from deltaconvert.backends.cuda.kernels import (
    TYPES,
    Kernel,
    number_of,
    on_current_stream,
    own_stream,
    strides_of,
    why_not,
)
from deltaconvert.backends.cuda.marks import Listed, Listing, Listings, Marks, keeps_places, needed
from deltaconvert.backends.cuda.means import BoxMeans, InBoxes, boxes_of
from deltaconvert.backends.cuda.passing import note_passing
from deltaconvert.backends.cuda.recording import Recording
from deltaconvert.backends.cuda.tail import NoKernel, Tail, device_bytes
from deltaconvert.backends.cuda.tuning import Tuner, boxes
from deltaconvert.backends.reference import fill_unseen
from deltaconvert.errors import InputError
from deltaconvert.gate import Watch
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.reach import Pixel, Reach, Window

__all__ = ["NAME", "Backend", "why_not"]

NAME = "cuda"
PASSES = (join_concats, note_passing)
THREADS = 256
COUNTERS = 1 << 18
# Blocks of the kernels that walk a list: enough to fill the device, few enough that a still frame's cost nothing.
BLOCKS_PER_PROCESSOR = 8


class Edge:
    """One delta: values (N, C, H, W; channels last in memory, a pixel every `pitch` values) and marks."""

    is_kept = True

    def __init__(self, kept: Map, memory: Tensor | None = None, is_part: bool = False, passes: bool = False):
        """memory: N H W and channels, where others lie beside it; is_part: the memory is another edge's. passes: see
        `passing.py`."""
        n, channels, height, width = kept.shape
        self.threshold = kept.threshold
        self.of_boxes: tuple[int, int, int] | None = None  # side, H, W: a pixel is the mean of a box of a map
        self.beside = 0  # bytes of what a step keeps beside it
        self.planes: Planes | None = None  # where the values are needed as a dense map
        self.expected: Any = None  # until the first frame: where it can change if one of `tuning.boxes` does
        if memory is None:
            pitch = pitch_of(channels, kept.dtype)
            memory = torch.zeros(n, height, width, pitch, dtype=kept.dtype, device=kept.device)
        self.pitch, self.is_part = memory.stride(2), is_part
        self.passes = passes and self.pitch == channels
        self.values = memory[..., :channels].permute(0, 3, 1, 2)
        self.marks: Marks
        self.computed: Tensor  # int32 (1), pixels that this frame computed
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        if self.is_kept:
            fill_unseen(self.values[streams])

    def put(self, stream: int, values: Tensor) -> None:
        """Go on from `values` (C H W)."""
        self.values[stream] = values
        if self.planes is not None:
            self.planes.put(stream, values)

    def pass_on(self, memory: Tensor) -> None:
        """Compute into memory that others use as well: what it holds is gone with the next step."""
        self.values, self.is_kept = memory, False

    @property
    def mask(self) -> Tensor:
        return self.marks.dense()

    @property
    def changed(self) -> bool:
        """Always true: to know it would wait for the device."""
        return True

    def dense(self) -> Tensor:
        """N C H W in memory, read-only. Of a step it is the same tensor in every frame."""
        if self.planes is None:
            return self.values.clone(memory_format=torch.contiguous_format)
        return self.planes.current()

    def state_bytes(self) -> int:
        kept = self.beside + (0 if self.planes is None else self.planes.state_bytes())
        own = 0 if self.is_part or not self.is_kept else self.values.untyped_storage().nbytes()
        return own + self.marks.bits.nbytes + kept


class Planes:
    """The values of a step's edge as a dense map, N C H W: what a frame computed is laid out anew."""

    def __init__(self, backend: Backend, edge: Edge, computed: Listed):
        self._backend, self._edge, self._computed = backend, edge, computed
        self._values: Tensor | None = None  # nobody asked yet

    def current(self) -> Tensor:
        edge = self._edge
        if self._values is None:
            self._values = edge.values.clone(memory_format=torch.contiguous_format)
        _, channels, height, width = edge.values.shape
        vector = max(1, 16 // edge.values.dtype.itemsize)
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
    """A delta that dense values come in by, or bytes that become such values on the way.

    watch: the gate that decides what is new, if there is one.
    """

    threshold: float

    def __init__(self, backend: Backend, kept: Map, watch: Watch | None):
        self.watch = watch
        super().__init__(kept)
        self._awake = torch.ones(kept.shape[0], dtype=torch.int32, device=kept.device)
        self.expected = boxes(kept.shape[2:], kept.device)
        self.marks = backend.marks(kept.shape, kept.device, backend.place)
        self.computed = backend.counter(1, kept.device)
        self._backend = backend
        self._looks = Looks(backend, self, watch) if watch is not None and has_kernels(watch) else None

    def sleep(self, streams: Collection[int]) -> None:
        """These streams' images are those of the frame before, until it is said again."""
        if self.watch is not None:
            self.watch.sleep(streams)
            return
        awake = [int(stream not in streams) for stream in range(len(self._awake))]
        self._awake.copy_(torch.tensor(awake, dtype=torch.int32), non_blocking=True)

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
        run = 8 // frame.dtype.itemsize  # pixels of a thread: 8 bytes of each channel
        apart = (frame.data_ptr() // frame.dtype.itemsize, *frame.stride()[:3])
        side_by_side = channels <= 4 and frame.stride(3) == 1 and frame.dtype == self.values.dtype
        if side_by_side and all(step % run == 0 for step in (width, *apart)):
            pixels, macros = run, {"PIXELS": run, "CHANNELS": channels}
        self._backend.launch(
            self._backend.kernel("masks.cu", "sparsify", self.values.dtype, **macros),
            (-(-height * self.marks.bits.shape[2] * 32 // (THREADS * pixels)), n),
            THREADS,
            frame,
            *strides_of(frame),
            self.values,
            np.int32(self.pitch),
            self._awake,
            self.marks.bits,
            self.marks.changed,
            self.computed,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            number_of(self.threshold, self.values.dtype),
        )

    def _run_watched(self, watch: Watch, frame: Tensor) -> None:
        """By torch, inside the graph."""
        frame, mask = watch.look(frame.to(self.values.dtype), self.values)
        self.values.copy_(torch.where(mask, frame, self.values))
        self.marks.put(mask)
        self.computed.fill_(mask.numel())


class Backend:
    """Makes the steps of one program and plays its frames."""

    takes_bytes = True

    def __init__(self) -> None:
        self._counters: Tensor | None = None
        self._used = 0
        self._counted: Tensor | None = None
        self._edges: list[Edge] = []
        self._scratch: dict[tuple[torch.dtype, int], Tensor] = {}
        self._recording: Recording | None = None
        self._passed = 1  # the scratch that the last map was passed on in
        self._joined_maps: dict[str, Tensor] = {}  # of concatenations whose inputs are parts of them
        self._behind: dict[int, Listings] = {}  # a source -> the lists that it decides about
        self.place = 0  # of the next step among all
        self._side: torch.cuda.Stream | None = None  # where lists are made beside the first steps
        self._forked = self._joined = False  # something runs there; the next launch waits for it
        self._events: list[torch.cuda.Event] = []  # of this frame's launches there
        self._awaited = 0  # so many of them
        self.launches = 0  # so far, by this backend
        self._ended = 0  # so many of them have when the next kernel starts
        self.kernel = lru_cache(maxsize=None)(_kernel)
        self.tuner = Tuner(partial(_Launch, self))

    def sparsify(self, kept: Map, watch: Watch | None) -> FrameEdge:
        self.place += 1
        with torch.cuda.device(kept.device):
            edge = FrameEdge(self, kept, watch)
        self._edges.append(edge)
        return edge

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        kept: Map,
        notes: dict[str, Any],
    ) -> Step | InBoxes:
        is_part = "part" in notes and "joins" not in notes
        edge = Edge(kept, self._joined_memory(kept, notes), is_part, notes.get("passes", False))
        self._edges.append(edge)
        self.place += 1
        with torch.cuda.device(kept.device):
            if notes.get("joins"):
                return Step(self, operator, reaches, inputs, edge, in_place=True)
            boxed = boxes_of(operator, inputs[0], edge)
            if boxed is None:
                return Step(self, operator, reaches, inputs, edge)
            boxes = self._boxes(boxed, inputs[0])
            return InBoxes(boxes, Step(self, operator, reaches, [boxes.edge, *inputs[1:]], edge))

    def _joined_memory(self, kept: Map, notes: dict[str, Any]) -> Tensor | None:
        """The memory of a map that a concatenation holds, or of the concatenation (`concats.py`)."""
        if "part" not in notes:
            return None
        name, (n, channels, height, width), first = notes["part"]
        if name not in self._joined_maps:
            shape = (n, height, width, pitch_of(channels, kept.dtype))
            self._joined_maps[name] = torch.zeros(shape, dtype=kept.dtype, device=kept.device)
        return self._joined_maps[name][..., first:]

    def _boxes(self, boxed: BoxMeans, source: Edge) -> Step:
        n, _, *size = source.values.shape
        reach, (channels, dtype) = boxed.reach(size), boxed.form(source)
        edge = Edge(Map((n, channels, *reach.out_size), dtype, source.values.device))
        edge.of_boxes = (boxed.side, size[0], size[1])
        operator: Any = boxed
        return Step(self, operator, [reach], [source], edge)

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

    def marks(self, shape: Shape, device: torch.device, source: int) -> Marks:
        n, _, height, width = shape
        bits = torch.zeros(n, height, -(-width // 32), dtype=torch.int32, device=device)
        return Marks((height, width), bits, self.counter(n, device), source)

    def add_listing(self, source: int, listing: Listing) -> None:
        self._behind.setdefault(source, Listings()).add(listing)

    def list_behind(self, marks: Marks) -> None:
        """Make the lists that depend on a node that has just compared, and on none that comes later."""
        listings = self._behind.get(marks.source)
        if listings is not None:
            listings.run(self)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        threads: int,
        *args: Tensor | np.generic,
        shared_bytes: int | None = None,
        early: bool = False,
    ) -> None:
        """early: the next kernel may start before this one has waited for the one before it (`kernels/common.cuh`)."""
        self.launches += 1
        kernel(grid, threads, *args, overlap=not self._joined, shared_bytes=shared_bytes)
        if self._joined or not early:
            self._ended = self.launches - 1
        self._joined = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is launched inside runs beside what is launched after, until `join`."""
        here, launches, ended = torch.cuda.current_stream(), self.launches, self._ended
        if self._side is None:
            self._side = own_stream(here.device)
        self._side.wait_stream(here)
        self._joined = True
        with torch.cuda.stream(self._side), on_current_stream(here.device):
            yield
        self.launches, self._ended, self._forked, self._joined = launches, ended, True, False

    def mark(self) -> int:
        """Inside `aside`: a place that `join` can wait for."""
        self._events.append(torch.cuda.Event())
        self._events[-1].record()
        return len(self._events)

    def join(self, mark: int | None = None) -> None:
        """The next launch waits for what was launched aside up to a mark, or for all of it, and starts when all before
        it has ended."""
        if mark is None and self._forked:
            assert self._side is not None
            torch.cuda.current_stream().wait_stream(self._side)
            self._forked, self._joined, self._awaited = False, True, len(self._events)
        elif mark is not None and mark > self._awaited:
            mark = min(mark + 1, len(self._events))  # the next one is most likely there: half as many waits
            torch.cuda.current_stream().wait_event(self._events[mark - 1])
            self._joined, self._awaited = True, mark

    def is_early(self, listed: Listed) -> bool:
        """Whether a list is complete when the next kernel starts."""
        return listed.launch <= self._ended

    def scratch(self, edge: Edge, place: int = 0) -> Tensor:
        """Memory of the shape and strides of an edge's values, the same for every step: valid until the next call.

        place: which of several such; 0 is for maps that are compared, 1 and 2 for those that are passed on in turn.
        """
        n, channels, height, width = edge.values.shape
        size = n * height * width * edge.pitch
        key = edge.values.dtype, place
        kept = self._scratch.get(key)
        if kept is None or kept.numel() < size:
            kept = self._scratch[key] = edge.values.new_empty(size)
        return kept[:size].view(n, height, width, edge.pitch)[..., :channels].permute(0, 3, 1, 2)

    def pass_on(self, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> None:
        """An input that the step alone reads, pixel by pixel and no others than it has, gives up its own memory."""
        (reach, marks), *others = needed(
            [(r, source.marks) for r, source in zip(reaches, inputs, strict=True)]
        )
        for source in inputs:
            if source.passes and source.marks is marks and isinstance(reach, Pixel) and not others:
                self._passed = 3 - self._passed  # its own input may be in the other one
                source.pass_on(self.scratch(source, self._passed))

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        if self._recording is None:
            device = next(value.device for value in frame.values if isinstance(value, Tensor))
            self._recording = Recording(device, self._start, self.join, self._finish)
            for edge in self._edges:
                edge.expected = None
        self._recording.play(steps, frame)

    @property
    def outside(self) -> dict[str, str]:
        """Nodes that the graph could not hold, and why; known after the first frame."""
        return {} if self._recording is None else self._recording.outside

    @property
    def buffers(self) -> dict[int, Tensor]:
        return {} if self._recording is None else self._recording.inputs

    def count(self, edges: Sequence[Any]) -> Tensor:
        assert self._counted is not None
        return self._counted

    def _start(self) -> None:
        self._events, self._awaited, self._ended = [], 0, self.launches
        if self._counters is not None:
            self._counters[: self._used].zero_()

    def _finish(self) -> None:
        """Gather the counts of all edges and add them to those of the frames before; part of the graph."""
        self.join()
        if self._counters is None:
            return
        if self._counted is None:
            at = [
                [edge.computed.storage_offset() for edge in self._edges],
                [edge.marks.changed.storage_offset() for edge in self._edges],
                [len(edge.marks.changed) for edge in self._edges],
            ]
            self._places = torch.tensor(at, dtype=torch.int32, device=self._counters.device)
            self._counted = torch.zeros(
                2, len(self._edges), 2, dtype=torch.int64, device=self._counters.device
            )
        edges = len(self._edges)
        tally = self.kernel("masks.cu", "tally", torch.float32)
        grid = (-(-edges // THREADS),)
        self.launch(tally, grid, THREADS, self._counters, *self._places, self._counted, np.int32(edges))


def candidates_of(backend: Backend, reaches: Sequence[Reach], inputs: Sequence[Edge], edge: Edge) -> Listed:
    """The list of pixels that a step computes, from its inputs' marks by its reaches; and the edge's own marks."""
    read = [(reach, source.marks) for reach, source in zip(reaches, inputs, strict=True)]
    pairs = needed(read)
    n, _, height, width = edge.values.shape
    device = edge.values.device
    (reach, first), alone = pairs[0], len(pairs) == 1
    if alone and isinstance(reach, Pixel) and edge.threshold is None and first.listed is not None:
        edge.marks = first
        return first.listed
    behind = max(marks.source for _, marks in pairs)
    listed = Listed(
        torch.zeros(n * height * width, dtype=torch.int32, device=device), backend.counter(1, device)
    )
    compared = edge.threshold is not None
    edge.marks = backend.marks((n, 1, height, width), device, backend.place if compared else behind)
    if not compared:
        edge.marks.listed = listed
        edge.marks.seen = (reach, first) if alone and isinstance(reach, Window) else None
        among = [marks for reach, marks in read if keeps_places(reach)]
        edge.marks.covers = frozenset(among).union(*(marks.covers for marks in among))
    bits = torch.zeros_like(edge.marks.bits) if compared else edge.marks.bits
    backend.add_listing(behind, Listing(edge.marks, listed, bits, pairs))
    return listed


def changes_of(backend: Backend, edge: Edge) -> Listed:
    """The list of an edge's changed pixels."""
    if edge.marks.listed is None:
        n, _, height, width = edge.values.shape
        shape, device, source = (n, 1, height, width), edge.values.device, edge.marks.source
        copied = backend.marks(shape, device, source)
        listed = Listed(
            torch.zeros(n * height * width, dtype=torch.int32, device=device), backend.counter(1, device)
        )
        backend.add_listing(source, Listing(copied, listed, copied.bits, [(Pixel(), edge.marks)]))
        edge.marks.listed = listed
    return edge.marks.listed


class Step:
    """One operator: compute the candidates and store them."""

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        edge: Edge,
        in_place: bool = False,
    ):
        """in_place: the inputs are parts of the edge already."""
        self.operator, self.inputs, self.edge = operator, inputs, edge
        spreads = (reach.spread(source.expected) for reach, source in zip(reaches, inputs, strict=True))
        edge.expected = reduce(torch.logical_or, spreads)
        self.candidates = candidates_of(backend, reaches, inputs, edge)
        backend.pass_on(reaches, inputs)
        self._rows = self.candidates  # what the kernel walks
        edge.computed, edge.planes = self.candidates.count, Planes(backend, edge, self.candidates)
        self._backend = backend
        self._compute: Callable[[], None]
        if in_place:
            self._compute = lambda: None
            return
        try:
            head, tail = head_of(operator, reaches, inputs, edge, backend.tuner)
        except NoKernel:
            self._compute = self._whole
        else:
            self._launch = _Launch(backend, head, tail, edge)
            self._compute = self._listed
            if head.up != (1, 1):
                self._rows = changes_of(backend, inputs[0])

    def rebuild(self) -> None:
        """Nothing is kept beside the edges."""

    def run(self) -> None:
        self._backend.join(max(self.candidates.aside, self._rows.aside))
        self._compute()

    def compute(self, candidates: Listed) -> None:
        """The pixels of a list, at once into the state."""
        self._launch(self.edge.values, candidates)

    def _listed(self) -> None:
        """Candidates alone. A threshold decides about whole pixels, so a kernel that has not all of their channels at
        hand leaves them in scratch."""
        edge = self.edge
        if edge.threshold is None:
            self._launch(edge.values, self._rows)
        elif self._launch.compares:
            self._launch(edge.values, self._rows)
            self._backend.list_behind(edge.marks)
        else:
            fresh = self._backend.scratch(edge)
            self._launch(fresh, self._rows)
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
        weighted = isinstance(edge.threshold, Tensor)
        early = self._backend.is_early(self.candidates)
        _, channels, height, width = edge.values.shape
        self._backend.launch(
            self._backend.kernel("masks.cu", "commit", edge.values.dtype, WEIGHTED=int(weighted)),
            (blocks_of(edge),),
            THREADS,
            fresh,
            *strides_of(fresh),
            edge.values,
            np.int32(edge.pitch),
            edge.marks.bits,
            edge.marks.changed,
            self.candidates.places,
            self.candidates.count,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            self._threshold,
            np.int32(early),
            early=early,
        )
        if edge.threshold is not None:
            self._backend.list_behind(edge.marks)

    @cached_property
    def _threshold(self) -> Tensor | np.generic:
        """What `commit` compares with: a number, or one for each channel."""
        threshold, dtype = self.edge.threshold, self.edge.values.dtype
        if isinstance(threshold, Tensor):
            return threshold.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return number_of(-1.0 if threshold is None else threshold, dtype)


class _Launch:
    """A computing kernel with its parameters on the device."""

    def __init__(self, backend: Backend, head: Head, tail: Tail, edge: Edge):
        _, channels, height, width = edge.values.shape
        rows, cols = head.up
        self._channels, self._height, self._width = channels * rows * cols, height // rows, width // cols
        self._pitch, self._threads = edge.pitch, head.threads
        vector = max(1, 16 // edge.values.dtype.itemsize)
        macros = {"WIDTH": min(vector, edge.pitch), **head.macros, **tail.macros()}
        self._kernel = backend.kernel(head.source, head.name, edge.values.dtype, head.shared_bytes, **macros)
        self._head, self._operands = device_bytes(head.packed, edge.values.device), tail.packed()
        self._kept, self._backend = (head, tail), backend
        self.compares, self._more = head.compares, head.more
        self._cluster, self._most = head.cluster, blocks_of(edge, head.shared_bytes)

    @cached_property
    def _blocks(self) -> int:
        """As many as run at a time; clusters do not fill every multiprocessor."""
        clusters = self._most // self._cluster
        if self._cluster > 1:
            clusters = min(clusters, self._kernel.clusters_at_once(self._cluster, self._threads) or clusters)
        return clusters * self._cluster

    def __call__(self, out: Tensor, candidates: Listed) -> None:
        early = self._backend.is_early(candidates)
        self._backend.launch(
            self._kernel,
            (self._blocks,),
            self._threads,
            self._head,
            self._operands,
            out,
            np.int32(self._pitch),
            np.int32(self._channels),
            candidates.places,
            candidates.count,
            np.int32(self._height),
            np.int32(self._width),
            np.int32(early),
            *self._more,
            early=early,
        )


def _kernel(source: str, name: str, dtype: torch.dtype, shared_bytes: int = 0, **macros: Any) -> Kernel:
    # Maps of integers are moved, and compared by their bits: any type of their size will do.
    kind = TYPES[dtype] if dtype in TYPES else {8: 0, 4: 1, 2: 2, 1: 4}[dtype.itemsize]
    return Kernel(source, name, {"TYPE": kind, **macros}, shared_bytes)


def blocks_of(edge: Edge, shared_bytes: int = 0) -> int:
    """Blocks that walk a list: as many as run at a time."""
    at_once = BLOCKS_PER_PROCESSOR if shared_bytes == 0 else blocks_at_once(shared_bytes)
    return at_once * torch.cuda.get_device_properties(edge.values.device).multi_processor_count
