"""A computing kernel with its parameters: compiled, and launched on a list of pixels."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.conv_kernels import Head, blocks_at_once, has_threshold
from deltaconvert.backends.cuda.kernels import TYPES, Kernel, number_of
from deltaconvert.backends.cuda.layout import lanes_of_pixel, vector_of
from deltaconvert.backends.cuda.marks import Listed, Marks
from deltaconvert.backends.cuda.octets import Octets
from deltaconvert.backends.cuda.tail import Tail, device_bytes

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend
    from deltaconvert.backends.cuda.edges import Edge

THREADS = 256
# Blocks of the kernels that walk a list: enough to fill the device, few enough to cost nothing in a still frame.
BLOCKS_PER_PROCESSOR = 8
NONE = np.uint64(0)  # an address
COMPARING = ("rows", "depthwise")  # kernels that end with kernels/compare.cuh


class Launch:
    """A computing kernel with its parameters on the device."""

    def __init__(self, backend: Backend, head: Head, tail: Tail, edge: Edge):
        _, channels, height, width = edge.values.shape
        rows, cols = head.up
        self._channels, self._height, self._width = channels * rows * cols, height // rows, width // cols
        self._pitch, self._threads = edge.pitch, head.threads
        vector = vector_of(edge.values.dtype)
        macros = {"WIDTH": min(vector, edge.pitch), **head.macros, **tail.macros()}
        macros["FULL"] = int(channels % macros["WIDTH"] == 0)
        self.compares, self._more = head.compares, head.more
        self._marks: Marks | None = None  # that it makes, and lists if a step needs the list
        if head.name in COMPARING:
            lanes = lanes_of_pixel(channels, macros["WIDTH"])
            self.compares = head.may_compare and may_compare(edge, lanes)
            self._more = (NONE, NONE, number_of(0, edge.values.dtype))
            if self.compares:
                self._more = (edge.marks.bits, edge.marks.changed, edge.limits)
                macros.update(COMPARE=1, WEIGHTED=int(edge.is_weighted), VOTERS=lanes)
                edge.marks.can_list, self._marks = True, edge.marks
        self._kept, self._backend, self._macros, self.edge = (head, tail), backend, macros, edge
        self._kernel = self.compiled()
        self._head, self._operands = device_bytes(head.packed, edge.values.device), tail.packed()
        self._octets = Octets(backend, edge) if head.octets else None
        self._cluster, self._most = head.cluster, blocks_of(edge, head.shared_bytes)

    def compiled(self, **more: int) -> Kernel:
        """more: macros."""
        head = self._kept[0]
        macros = {**self._macros, **more}
        return self._backend.kernel(
            head.source, head.name, self.edge.values.dtype, head.shared_bytes, **macros
        )

    @property
    def form(self) -> Hashable:
        """Launches of the same form can be one launch."""
        return self._kept[0].source, self._pitch, self._threads, *sorted(self._macros.items())

    @property
    def packed(self) -> bytes:
        """struct Head of its kernel."""
        return self._kept[0].packed

    @cached_property
    def blocks(self) -> int:
        """The number of blocks. For a kernel of tiles as many as run at a time, since the next kernel can start only
        when all have started. A pool of a large map is faster with more (H100: 85 us; with five a multiprocessor 117).
        Clusters do not fill every multiprocessor."""
        if self._cluster == 1 and not self._kept[0].reads_bits:
            return self._most
        if self._cluster == 1:
            at_once = self._kernel.blocks_at_once(self._threads)
            return self._most if at_once is None else min(self._most, at_once * processors_of(self.edge))
        clusters = self._most // self._cluster
        clusters = min(clusters, self._kernel.clusters_at_once(self._cluster, self._threads) or clusters)
        return clusters * self._cluster

    def __call__(self, out: Tensor, candidates: Listed) -> None:
        if self._octets is not None:
            self._octets.run(candidates)
        self.play(self._kernel, (self.blocks,), self._head, out, candidates)

    def play(
        self, kernel: Kernel, grid: tuple[int, ...], head: Tensor, out: Tensor, candidates: Listed
    ) -> None:
        early = self._octets is None and self._backend.is_early(candidates)
        more, listed = self._more, None if self._marks is None else self._marks.own
        if self._kept[0].name in COMPARING:
            more += (NONE, NONE) if listed is None else (listed.places, listed.count)
        if self._kept[0].source == "conv_wgmma.cu":
            more += (NONE, NONE) if self._octets is None else (self._octets.places, self._octets.counts)
        if self._kept[0].reads_bits:
            more += (NONE if candidates.bits is None else candidates.bits,)
        self._backend.launch(
            kernel,
            grid,
            self._threads,
            head,
            self._operands,
            out,
            np.int32(self._pitch),
            np.int32(self._channels),
            candidates.places,
            candidates.count,
            np.int32(self._height),
            np.int32(self._width),
            np.int32(early),
            *more,
            early=early,
        )


class Together:
    """Several launches of kernels/depthwise.cu, of one form and one list, as one: blockIdx.y tells them apart."""

    def __init__(self, launches: Sequence[Launch]):
        self._first, self._launches = launches[0], launches
        self._kernel = self._first.compiled(TOGETHER=1)

    @cached_property
    def _heads(self) -> Tensor:
        """struct Sibling of each. Made after all steps, because a later step may give a map other memory."""
        packed = [
            launch.packed + struct.pack("=Q2i", launch.edge.values.data_ptr(), launch.edge.pitch, 0)
            for launch in self._launches
        ]
        return device_bytes(b"".join(packed), self._first.edge.values.device)

    def __call__(self, candidates: Listed) -> None:
        count = len(self._launches)
        grid = -(-self._first.blocks // count), count
        self._first.play(self._kernel, grid, self._heads, self._first.edge.values, candidates)


def may_compare(edge: Edge, lanes: int) -> bool:
    """Whether a kernel with so many threads for a pixel can compare: they have to be in one warp."""
    n, _, height, width = edge.values.shape
    return has_threshold(edge) and lanes <= 32 and n * height * width * lanes < 2**32


def kernel_for(source: str, name: str, dtype: torch.dtype, shared_bytes: int = 0, **macros: Any) -> Kernel:
    # Maps of integers are only moved and compared by bits, so any type of their size will do.
    kind = TYPES[dtype] if dtype in TYPES else {8: 0, 4: 1, 2: 2, 1: 4}[dtype.itemsize]
    return Kernel(source, name, {"TYPE": kind, **macros}, shared_bytes)


def blocks_of(edge: Edge, shared_bytes: int = 0) -> int:
    """How many blocks walk a list: as many as run at a time."""
    at_once = BLOCKS_PER_PROCESSOR if shared_bytes == 0 else blocks_at_once(shared_bytes)
    return at_once * processors_of(edge)


def processors_of(edge: Edge) -> int:
    count: int = torch.cuda.get_device_properties(edge.values.device).multi_processor_count
    return count
