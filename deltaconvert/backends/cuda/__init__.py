"""The cuda backend: kernels/*.cu compute the changed pixels, and a frame is one CUDA graph.

State, masks, lists of pixels and their counts stay on the device, and the host never waits for it in a frame: grids are
fixed when the graph is captured, and a kernel walks as much of its list as there is. A map is N H W C in memory.

Lists of candidates are made ahead, for all steps that depend on the same mask (`marks.py`); a step is then one launch
that computes and stores the pixels of its list. Steps that have the same candidates by construction share a list. An
operator without a kernel is computed whole by torch, inside the graph, and its candidates are stored.

    the plan      sums, slices, behind, concats, siblings, passing, shuffles: passes, and notes on nodes
    a frame       recording (its graph), capturable, skipping (still frames), in_place (where it is read)
    changes       edges (maps, comparisons), gates, marks (masks), listings (of pixels)
    a step        steps, heads (which kernel), tail and functions (what is compiled into it), means, norms, launches
    convolutions  convs (which can compute one), conv_kernels, wgmma_kernels, depthwise, octets, tuning (the fastest)
    below         kernels (compiles and launches), layout (how maps lie in memory)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda.behind import join_behind
from deltaconvert.backends.cuda.concats import join_concats
from deltaconvert.backends.cuda.edges import Edge, FrameEdge
from deltaconvert.backends.cuda.kernels import Kernel, on_current_stream, own_stream, why_not
from deltaconvert.backends.cuda.launches import THREADS, Launch, kernel_for
from deltaconvert.backends.cuda.layout import pitch_of
from deltaconvert.backends.cuda.listings import Listing, Listings
from deltaconvert.backends.cuda.marks import Listed, Marks, needed
from deltaconvert.backends.cuda.means import BoxMeans, InBoxes, boxes_of
from deltaconvert.backends.cuda.passing import note_passing
from deltaconvert.backends.cuda.recording import Recording
from deltaconvert.backends.cuda.shuffles import LastShuffle, note_last_shuffles, plane_memory
from deltaconvert.backends.cuda.siblings import Siblings, note_siblings
from deltaconvert.backends.cuda.slices import fold_orders, join_pixel_concats
from deltaconvert.backends.cuda.steps import Step, changes_of
from deltaconvert.backends.cuda.sums import join_sums
from deltaconvert.backends.cuda.tuning import Tuner
from deltaconvert.errors import InputError
from deltaconvert.gate import Watch
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.pixel_shuffle import PixelShuffle
from deltaconvert.passes.join_elementwise import join_elementwise
from deltaconvert.reach import Pixel, Reach

__all__ = ["NAME", "Backend", "why_not"]

NAME = "cuda"
PASSES = (
    join_elementwise,
    join_sums,
    join_pixel_concats,
    fold_orders,
    join_behind,
    join_concats,
    note_siblings,
    note_passing,
    note_last_shuffles,
)
COUNTERS = 1 << 19  # at most half of them for marks (`cleared`)


class Backend:
    """Makes the steps of one program and plays its frames."""

    takes_bytes = True

    def __init__(self, settled: dict[Any, Any] | None = None) -> None:
        self._counters: Tensor | None = None
        self._used = 0
        self._counted: Tensor | None = None
        self._edges: list[Edge] = []
        self._scratch: dict[tuple[torch.dtype, int], Tensor] = {}
        self._recording: Recording | None = None
        self._passed = 1  # the scratch memory (1 or 2) that holds the map passed on last
        self._joined_maps: dict[str, Tensor] = {}  # of concatenations whose inputs are computed in place
        self._siblings: dict[str, Siblings] = {}
        self._behind: dict[int, Listings] = {}  # source -> the lists that follow from its mask
        self.listed: dict[tuple[Hashable, ...], Listing] = {}  # by what they follow from (`listings.key_of`)
        self.place = 0  # of the next step among all
        # The stream on which lists are made beside the first steps.
        self._side: torch.cuda.Stream | None = None
        self._joined = False  # whether the next launch waits for that stream
        self._events: list[torch.cuda.Event] = []  # after this frame's launches on that stream
        self._awaited = 0  # how many of them were waited for
        self.launches = 0  # kernels launched so far
        self._ended = 0  # how many of them have ended for certain when the next kernel starts
        self.kernel = lru_cache(maxsize=None)(kernel_for)
        self._held: list[Marks] | None = None  # marks whose lists are not made yet; see `lists_held`
        self.tuner = Tuner(partial(Launch, self))

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
    ) -> Step | InBoxes | LastShuffle:
        joins = notes.get("joins", False)
        memory = plane_memory(kept) if notes.get("leaves") else self._joined_memory(kept, notes)
        edge = Edge(kept, memory, "part" in notes and not joins, joins, notes.get("passes", False))
        self._edges.append(edge)
        self.place += 1
        with torch.cuda.device(kept.device):
            if notes.get("leaves"):
                assert isinstance(operator, PixelShuffle)
                return LastShuffle(self, operator, inputs[0], edge, changes_of(self, inputs[0]))
            if joins:
                return Step(self, operator, reaches, inputs, edge, in_place=True)
            boxed = boxes_of(operator, inputs[0], edge)
            if boxed is None:
                return self._with_siblings(Step(self, operator, reaches, inputs, edge), notes)
            boxes = self._boxes(boxed, inputs[0])
            return InBoxes(boxes, Step(self, operator, reaches, [boxes.edge, *inputs[1:]], edge))

    def _with_siblings(self, step: Step, notes: dict[str, Any]) -> Step:
        """Tell the step of the ones that it may be launched together with."""
        if "together" in notes:
            name, count = notes["together"]
            step.siblings = self._siblings.setdefault(name, Siblings(count))
            step.siblings.add(step)
        return step

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

    def cleared(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """int32, 0 at the start of every frame; None where there is no room for so many."""
        length = math.prod(shape)
        if self._used + length > COUNTERS // 2:
            return None
        return self.counter(length, device).view(*shape)

    def marks(self, shape: Shape, device: torch.device, source: int) -> Marks:
        n, _, height, width = shape
        bits = torch.zeros(n, height, -(-width // 32), dtype=torch.int32, device=device)
        return Marks((height, width), bits, self.counter(n, device), source)

    def add_listing(self, source: int, listing: Listing) -> None:
        self._behind.setdefault(source, Listings()).add(listing)

    def list_behind(self, marks: Marks) -> None:
        """Make the lists whose last source is the node that has just compared."""
        listings = self._behind.get(marks.source)
        if self._held is not None:
            self._held.append(marks)
        elif listings is not None:
            listings.run(self)

    @contextmanager
    def lists_held(self) -> Iterator[list[Marks]]:
        """Inside, the lists behind these marks are not made; whoever needs them makes them later."""
        self._held = []
        try:
            yield self._held
        finally:
            self._held = None

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, a launch starts only when all before it have ended."""
        self._ended = self.launches
        yield

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        threads: int,
        *args: Tensor | np.generic,
        shared_bytes: int | None = None,
        early: bool = False,
    ) -> None:
        """early: the next kernel may start before this one has waited for its predecessor (`kernels/common.cuh`)."""
        self.launches += 1
        kernel(grid, threads, *args, overlap=not self._joined, shared_bytes=shared_bytes)
        if self._joined or not early:
            self._ended = self.launches - 1
        self._joined = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is launched inside, up to the last `mark`, runs in parallel to what is launched after, until `join`."""
        here, launches, ended = torch.cuda.current_stream(), self.launches, self._ended
        if self._side is None:
            self._side = own_stream(here.device)
        self._side.wait_stream(here)
        self._joined = True
        with torch.cuda.stream(self._side), on_current_stream(here.device):
            yield
        self.launches, self._ended, self._joined = launches, ended, False

    def mark(self) -> int:
        """Inside `aside`: a place that `join` can wait for."""
        self._events.append(torch.cuda.Event())
        self._events[-1].record()
        return len(self._events)

    def join(self, mark: int | None = None) -> None:
        """Let the next launch wait for what was launched aside, up to a mark or all of it. It starts when all before it
        have ended."""
        last = len(self._events)
        wanted = last if mark is None else mark
        if wanted > self._awaited:
            # Except for the first two, the next mark has most likely been reached as well: to wait for that one halves
            # the waits. Measured (ResNet-50, half, H100, 1, 5 and 25 %): 0.271, 0.354, 0.679 ms, except for the first
            # alone 0.276, 0.354, 0.672.
            self._awaited = min(wanted + int(wanted > 2), last)
            torch.cuda.current_stream().wait_event(self._events[self._awaited - 1])
            self._joined = True

    def is_early(self, listed: Listed) -> bool:
        """Whether a list is complete when the next kernel starts."""
        return listed.launch <= self._ended

    def scratch(self, edge: Edge, place: int = 0) -> Tensor:
        """Memory of the shape and strides of an edge's values, shared by all steps: valid until the next call.

        place: which of three; 0 for maps that are compared later, 1 and 2 in turn for maps that are passed on.
        """
        n, channels, height, width = edge.values.shape
        size = n * height * width * edge.pitch
        key = edge.values.dtype, place
        kept = self._scratch.get(key)
        if kept is None or kept.numel() < size:
            kept = self._scratch[key] = edge.values.new_empty(size)
        return kept[:size].view(n, height, width, edge.pitch)[..., :channels].permute(0, 3, 1, 2)

    def pass_on(self, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> None:
        """Let an input use shared memory, if only this step reads it, and reads the same pixels that it computes."""
        (reach, marks), *others = needed(
            [(r, source.marks) for r, source in zip(reaches, inputs, strict=True)]
        )
        for source in inputs:
            if source.passes and source.marks is marks and isinstance(reach, Pixel) and not others:
                self._passed = 3 - self._passed  # the input of that step may be in the other one
                source.pass_on(self.scratch(source, self._passed))

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        if self._recording is None:
            device = next(value.device for value in frame.values if isinstance(value, Tensor))
            self._recording = Recording(device, self)
            for edge in self._edges:
                edge.expected = None
        self._recording.play(steps, frame)

    def where(self, frame: Tensor) -> tuple[np.uint64, np.uint64]:
        """`frame` and `at` of a kernel that reads a frame (`in_place.py`)."""
        assert self._recording is not None
        return self._recording.addresses.of(frame)

    @property
    def outside(self) -> dict[str, str]:
        """Nodes that run outside of the graph, and why; known after the first frame."""
        return {} if self._recording is None else self._recording.outside

    @property
    def still(self) -> str | None:
        """What a still frame skips, or why it skips nothing; known after the first frame."""
        return None if self._recording is None else self._recording.still

    @property
    def buffers(self) -> dict[int, Tensor]:
        return {} if self._recording is None else self._recording.inputs

    def count(self, edges: Sequence[Any]) -> Tensor:
        assert self._counted is not None
        return self._counted

    def start(self) -> None:
        """Called before the steps of a frame."""
        self._events, self._awaited, self._ended = [], 0, self.launches
        if self._counters is not None:
            clear = self.kernel("counters.cu", "clear", torch.float32)
            grid = (-(-self._used // THREADS),)
            self.launch(clear, grid, THREADS, self._counters, np.int32(self._used))

    def finish(self) -> None:
        """Called after the steps: gather the counts of all edges, and add them to those of earlier frames."""
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
            of_frames = [i for i, edge in enumerate(self._edges) if isinstance(edge, FrameEdge)]
            self._of_frames = torch.tensor(of_frames, dtype=torch.int32, device=self._counters.device)
            self._counted = torch.zeros(
                2, len(self._edges), 2, dtype=torch.int64, device=self._counters.device
            )
        edges = len(self._edges)
        tally = self.kernel("counters.cu", "tally", torch.float32)
        grid = (-(-edges // THREADS),)
        self.launch(tally, grid, THREADS, self._counters, *self._places, self._counted, np.int32(edges))

    def wake(self, finish: bool, node: np.uint64) -> None:
        """Run the body of a conditional node of the graph only if a frame has changed (`skipping.py`). finish:
        otherwise the frame ends there."""
        self.join()
        assert self._counters is not None and self._counted is not None
        self.launch(
            self.kernel("wake.cu", "wake", torch.float32),
            (1,),
            THREADS,
            self._counters,
            *self._places,
            self._counted,
            np.int32(len(self._edges) if finish else 0),
            self._of_frames,
            np.int32(len(self._of_frames)),
            node,
        )
