"""One operator of a network: its candidates, and how they are computed and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.edges import Edge, Planes
from deltaconvert.backends.cuda.heads import head_and_tail
from deltaconvert.backends.cuda.kernels import strides_of
from deltaconvert.backends.cuda.launches import THREADS, Launch, blocks_of
from deltaconvert.backends.cuda.listings import Listing, key_of
from deltaconvert.backends.cuda.marks import Listed, Marks, keeps_places, needed, seen_from
from deltaconvert.backends.cuda.tail import NoKernel
from deltaconvert.ops.base import Operator
from deltaconvert.reach import Pixel, Reach, Window, seen_by

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend
    from deltaconvert.backends.cuda.siblings import Siblings


# Up to so many pixels, a map's marks are listed by the kernel that makes them, without a launch for the list. Measured
# (H100, half, nine convolutions of 32 channels, four of them depthwise; benchmarks/results/gpu_lists.json, rows below
# 0.2 million pixels are of a busy machine), us a frame by the kernel and by launches: 0.92 million 139 and 148 at 1 %,
# 176 and 185 at 5 %, 1190 and 1225 at 100 %; 2.07 million 310 and 316 at 5 %, 809 and 807 at 25 %, 2677 and 2593 at
# 100 %.
SMALL = 1 << 20


Pairs = list[tuple[Reach, Marks]]


def candidates_of(backend: Backend, reaches: Sequence[Reach], inputs: Sequence[Edge], edge: Edge) -> Listed:
    """The list of pixels that a step computes, and the marks of its edge.

    The list is, in this order: that of its only input, if it is read pixel by pixel; that of another step with the same
    windows on the same marks; one of its own, made ahead. Without a threshold everything computed counts as changed,
    and the marks are those of the list; with one the step's kernel marks what it finds."""
    read = [(seen_by(reach), source.marks) for reach, source in zip(reaches, inputs, strict=True)]
    pairs = [seen_from(reach, marks) for reach, marks in needed(read)]
    for found in (_inputs_list, _another_steps_list):
        listed = found(backend, pairs, edge)
        if listed is not None:
            return listed
    return _own_list(backend, read, pairs, edge)


def _inputs_list(backend: Backend, pairs: Pairs, edge: Edge) -> Listed | None:
    (reach, first), alone = pairs[0], len(pairs) == 1
    if not alone or not isinstance(reach, Pixel):
        return None
    if first.listed is None and first.can_list and _is_small(edge):
        first.listed = first.own = room_for(backend, edge, first.bits)
    if first.listed is not None and edge.threshold is None:
        edge.marks = first
        return first.listed
    if first.listed is None or not _is_small(edge):
        return None
    # Its changes are listed by its own kernel, and its marks are cleared with the counters.
    return first.listed if _marked_by_itself(backend, first.bits, first.size, edge) else None


def _another_steps_list(backend: Backend, pairs: Pairs, edge: Edge) -> Listed | None:
    same = backend.listed.get(key_of(pairs))
    if same is None:
        return None
    if edge.threshold is None:
        if same.marks.listed is not same.listed:
            return None
        edge.marks = same.marks
        return same.listed
    size = (edge.values.shape[2], edge.values.shape[3])
    return same.listed if _is_small(edge) and _marked_by_itself(backend, same.bits, size, edge) else None


def _own_list(backend: Backend, read: Pairs, pairs: Pairs, edge: Edge) -> Listed:
    """A list made right after the last source that it depends on."""
    n, _, height, width = edge.values.shape
    compared, behind = edge.threshold is not None, max(marks.source for _, marks in pairs)
    source = backend.place if compared else behind
    edge.marks = backend.marks((n, 1, height, width), edge.values.device, source)
    bits = torch.zeros_like(edge.marks.bits) if compared else edge.marks.bits
    listed = room_for(backend, edge, bits)
    if not compared:
        reach, first = pairs[0]
        edge.marks.listed = listed
        edge.marks.seen = (reach, first) if len(pairs) == 1 and isinstance(reach, Window) else None
        among = [marks for reach, marks in read if keeps_places(reach)]
        edge.marks.covers = frozenset(among).union(*(marks.covers for marks in among))
    listing = backend.listed[key_of(pairs)] = Listing(edge.marks, listed, bits, pairs)
    backend.add_listing(behind, listing)
    return listed


def _is_small(edge: Edge) -> bool:
    n, _, height, width = edge.values.shape
    return n * height * width <= SMALL


def _marked_by_itself(backend: Backend, like: Tensor, size: tuple[int, int], edge: Edge) -> bool:
    """Give an edge marks that its step's kernel makes, in memory that each frame clears, if there is room."""
    device = edge.values.device
    bits = backend.cleared(like.shape, device)
    if bits is None:
        return False
    edge.marks = Marks(size, bits, backend.counter(len(edge.values), device), backend.place)
    return True


def changes_of(backend: Backend, edge: Edge) -> Listed:
    """The list of an edge's changed pixels."""
    if edge.marks.listed is None:
        n, _, height, width = edge.values.shape
        shape, device, source = (n, 1, height, width), edge.values.device, edge.marks.source
        copied = backend.marks(shape, device, source)
        listed = room_for(backend, edge, copied.bits)
        backend.add_listing(source, Listing(copied, listed, copied.bits, [(Pixel(), edge.marks)]))
        edge.marks.listed = listed
    return edge.marks.listed


def room_for(backend: Backend, edge: Edge, bits: Tensor) -> Listed:
    """An empty list with room for all pixels of an edge. bits: the mask of the same pixels."""
    n, _, height, width = edge.values.shape
    places = torch.zeros(n * height * width, dtype=torch.int32, device=edge.values.device)
    return Listed(places, backend.counter(1, places.device), bits=bits)


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
        """in_place: the inputs are parts of the edge's memory already."""
        self.operator, self.inputs, self.edge = operator, inputs, edge
        spreads = (reach.spread(source.expected) for reach, source in zip(reaches, inputs, strict=True))
        edge.expected = reduce(torch.logical_or, spreads)
        self.candidates = candidates_of(backend, reaches, inputs, edge)
        backend.pass_on(reaches, inputs)
        self._rows = self.candidates  # the list that the kernel walks
        edge.computed, edge.planes = self.candidates.count, Planes(backend, edge, self.candidates)
        self._backend = backend
        self.siblings: Siblings | None = None  # the group that it may be launched with
        self.launch: Launch | None = None
        self.run_alone: Callable[[], None]
        if in_place:
            self.run_alone = lambda: None
            return
        try:
            head, tail = head_and_tail(operator, reaches, inputs, edge, backend.tuner)
        except NoKernel:
            self.run_alone = self._whole
        else:
            self.launch = Launch(backend, head, tail, edge)
            self.run_alone = partial(self._listed, self.launch)
            if head.up != (1, 1):
                self._rows = changes_of(backend, inputs[0])

    def rebuild(self) -> None:
        """A step keeps nothing beside its edges."""

    def run(self) -> None:
        self._backend.join(max(self.candidates.aside, self._rows.aside))
        if self.siblings is None:
            self.run_alone()
        else:
            self.siblings.run(self)

    def compute(self, candidates: Listed) -> None:
        """Compute the pixels of a list directly into the state."""
        assert self.launch is not None
        self.launch(self.edge.values, candidates)

    def _listed(self, launch: Launch) -> None:
        """Compute the candidates by the kernel. A threshold decides about whole pixels: a kernel that does not hold all
        channels of a pixel leaves its results in scratch memory for `commit`."""
        edge = self.edge
        if edge.threshold is None:
            launch(edge.values, self._rows)
        elif launch.compares:
            launch(edge.values, self._rows)
            if edge.marks.listed is not None:
                edge.marks.listed.launch = self._backend.launches
            self._backend.list_behind(edge.marks)
        else:
            fresh = self._backend.scratch(edge)
            launch(fresh, self._rows)
            self._commit(fresh)

    def _whole(self) -> None:
        """Compute the whole map by torch; without cuDNN's algorithms for transposed convolutions that add in any
        order."""
        with torch.backends.cudnn.flags(
            enabled=True, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            self._commit(self.operator(*(source.values for source in self.inputs)))

    def _commit(self, fresh: Tensor) -> None:
        """Store the candidates of a map that changed, and mark them."""
        edge = self.edge
        early = self._backend.is_early(self.candidates)
        _, channels, height, width = edge.values.shape
        self._backend.launch(
            self._backend.kernel("commit.cu", "commit", edge.values.dtype, WEIGHTED=int(edge.is_weighted)),
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
            edge.limits,
            np.int32(early),
            early=early,
        )
        if edge.threshold is not None:
            self._backend.list_behind(edge.marks)
