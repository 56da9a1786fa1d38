"""The lists of pixels made from masks: `struct Listing` of kernels/masks.cu.

At threshold 0 masks depend on masks alone. So the lists of all steps behind a *source*, a node that compares, are made
right after it, in few launches: those of a network without thresholds behind its input.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cuda.marks import Listed, Marks
from deltaconvert.backends.cuda.tail import device_bytes
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

THREADS = 1024  # of a block that makes small masks alone
TABLE_BYTES = 40 << 10  # of shared memory, for the parameters of a launch
OWN_BYTES = 1 << 10  # more than the shared memory that `spread` declares itself
LISTING_BYTES, REACH_BYTES = 72, 104
SMALL = THREADS + THREADS // 4  # words of a mask that one block makes in about the time of a launch
TOGETHER = 4 * SMALL  # words after which another launch begins
BROUGHT = 4 * THREADS  # largest mask, in words, that a block copies into shared memory before it reads it
_KINDS = {Pixel: 0, Sources: 3, Everything: 4}  # the enum of kernels/reach.cuh; windows are 1, transposed 2


@dataclass(eq=False)
class Listing:
    """How the candidates of a step come from the marks of its inputs.

    bits: of the candidates, as in Marks; those of the marks themselves where no threshold follows.
    """

    marks: Marks
    listed: Listed
    bits: Tensor
    pairs: list[tuple[Reach, Marks]]
    tables: list[Tensor] = field(default_factory=list)

    @property
    def words(self) -> int:
        """The number of words, 32 pixels each, in a stream's mask."""
        return self.bits[0].numel()

    @property
    def turns(self) -> int:
        """The number of turns that a warp takes to see all words."""
        return -(-self.words // 32)

    @property
    def table_bytes(self) -> int:
        return LISTING_BYTES + REACH_BYTES * len(self.pairs)

    def pack(self, first: int, behind: bool, turn: int, kept: int) -> bytes:
        compared = 0 if self.bits is self.marks.bits else self.marks.bits.data_ptr()
        others = (self.marks.changed, self.listed.places, self.listed.count)
        addresses = [self.bits.data_ptr(), compared, *(t.data_ptr() for t in others)]
        return struct.pack(
            "=5Q8i", *addresses, first, len(self.pairs), behind, turn, kept, 0, *self.marks.size
        )


def key_of(pairs: Sequence[tuple[Reach, Marks]]) -> tuple[Hashable, ...]:
    """Steps with the same key have the same candidates, such as branches that begin with equal windows on one map."""

    def shape(reach: Reach) -> Hashable:
        if isinstance(reach, Window):
            sizes = (reach.kernel, reach.stride, reach.padding, reach.dilation, reach.in_size, reach.out_size)
            return (*sizes, reach.transposed)
        return reach if isinstance(reach, (Pixel, Everything)) else id(reach)

    return tuple((shape(reach), id(marks)) for reach, marks in pairs)


class Listings:
    """The listings behind one source. The first launch is waited for; the others run in parallel to the first steps."""

    def __init__(self) -> None:
        self._listings: list[Listing] = []
        self._launches: list[_Launch] = []

    def add(self, listing: Listing) -> None:
        self._listings.append(listing)

    def run(self, backend: Any) -> None:
        backend.join()  # these listings may read what was made aside
        if not self._launches:
            self._launches = [_Launch(part) for part in parts_of(self._listings)]
        first, *others = self._launches
        first.run(backend)
        if others:
            with backend.aside():
                marks = []
                for launch in others:
                    launch.run(backend)
                    marks.append(backend.mark())
            for launch, mark in zip(others, marks, strict=True):
                launch.note(backend.launches, mark)


class _Launch:
    """levels: one level of large masks, or several levels of small ones."""

    def __init__(self, levels: Sequence[Sequence[Listing]]):
        self._listings = [listing for level in levels for listing in level]
        some = self._listings[0].bits
        properties = torch.cuda.get_device_properties(some.device)
        self._device, self._streams = some.device, len(some)
        self._alone = is_small(levels[0])
        self._room = getattr(properties, "shared_memory_per_block_optin", 48 << 10) - OWN_BYTES
        table, kept = table_of(levels, (self._room - TABLE_BYTES) // 4 - 1024 if self._alone else 0)
        self._table = device_bytes(table, self._device)
        inputs = sum(len(listing.pairs) for listing in self._listings)
        self._shared_bytes = len(table) + 4 * (2 * len(self._listings) + inputs + kept)
        turns = sum(listing.turns for listing in self._listings)
        self._then_list = not self._alone or turns <= 3 * THREADS // 32
        most = -(-8 * properties.multi_processor_count // self._streams)
        self._blocks = max(2, min(-(-turns // 8), most))

    def run(self, backend: Any) -> None:
        name = "spread_alone" if self._alone else "spread"
        spread = backend.kernel("masks.cu", name, torch.float32, self._room)
        grid, threads = ((1, self._streams), THREADS) if self._alone else ((self._blocks, self._streams), 256)
        args = (self._table, np.int32(self._table.numel() // 8), np.int32(len(self._listings)))
        flag = np.int32(self._then_list)
        backend.launch(spread, grid, threads, *args, flag, shared_bytes=self._shared_bytes)
        if not self._then_list:
            lists = backend.kernel("masks.cu", "list", torch.float32)
            grid = (self._blocks, self._streams)
            backend.launch(lists, grid, 256, *args, shared_bytes=self._table.numel())
        self.note(backend.launches, 0)

    def note(self, launches: int, aside: int) -> None:
        for listing in self._listings:
            listing.listed.launch, listing.listed.aside = launches, aside


def parts_of(listings: Sequence[Listing]) -> list[list[list[Listing]]]:
    """The levels of each launch. A large level has one of its own; small ones share one as long as their parameters
    fit, and the steps that wait for the first of them do not wait long for the last."""
    parts: list[list[list[Listing]]] = []
    room = words = 0
    for level in in_levels(listings):
        size = sum(listing.table_bytes for listing in level)
        if size > TABLE_BYTES:  # a node with more inputs than any network has
            parts += [[[listing]] for listing in level]
            room = 0
            continue
        if not is_small(level) or size > room or words >= TOGETHER:
            parts.append([])
            room, words = TABLE_BYTES, 0
        parts[-1].append(level)
        room = room - size if is_small(level) else 0
        words += sum(listing.words for listing in level)
    return parts


def is_small(level: Sequence[Listing]) -> bool:
    return sum(listing.words * _effort(listing) for listing in level) <= SMALL


def _effort(listing: Listing) -> int:
    """The effort for a word, which is larger for reaches that go bit by bit (`has_words` in kernels/reach.cuh)."""
    return 1 if all(_has_words(reach) for reach, _ in listing.pairs) else 16


def _has_words(reach: Reach) -> bool:
    if isinstance(reach, Window):
        if reach.kernel[1] > 32:
            return False
        if reach.transposed:
            return reach.stride[1] == 2 and reach.dilation[1] == 1
        return reach.stride[1] <= 2
    return not isinstance(reach, Sources) or spans_of(reach.cols) is not None


def spans_of(cols: Tensor) -> Tensor | None:
    """(W + 31) / 32: the first column that each 32 output pixels read (cols: W x taps, -1 for none).

    None if any 32 pixels read columns that are further apart than 32.
    """
    padded = F.pad(cols, (0, 0, 0, -len(cols) % 32), value=-1).view(-1, 32 * cols.shape[1])
    first = torch.where(padded < 0, padded.max() + 1, padded).amin(1)
    return first if bool((padded.amax(1) - first < 32).all()) else None


def table_of(levels: Sequence[Sequence[Listing]], room: int) -> tuple[bytes, int]:
    """(the parameters of `spread`: its listings, then their reaches; how many words of `room` keep masks)."""
    packed, reaches, turn, kept = b"", b"", 0, 0
    places: dict[Marks, int] = {}
    brought: dict[Marks, int] = {}  # where masks that are made elsewhere are kept
    for i, level in enumerate(levels):
        for j, listing in enumerate(level):
            fits = kept + listing.words <= room
            first = len(reaches) // REACH_BYTES
            packed += listing.pack(first, i > 0 and j == 0, turn, kept if fits else -1)
            turn += listing.turns
            kept += listing.words if fits else 0
            for reach, marks in listing.pairs:
                words = marks.bits[0].numel()
                brings = (
                    marks not in places and marks not in brought and kept + words <= min(room, kept + BROUGHT)
                )
                if brings:
                    brought[marks] = kept
                    kept += words
                place = places.get(marks, -1), brought.get(marks, -1), brings
                bytes_of_reach, tables = pack(reach, marks, place)
                reaches += bytes_of_reach
                listing.tables += tables
            if listing.bits is listing.marks.bits:
                places[listing.marks] = len(packed) // LISTING_BYTES - 1
    return packed + reaches, kept


def in_levels(listings: Sequence[Listing]) -> list[list[Listing]]:
    """The listings in levels, each after those that it reads."""
    depth: dict[Marks, int] = {}
    for listing in listings:
        depth[listing.marks] = 1 + max((depth.get(marks, -1) for _, marks in listing.pairs), default=-1)
    levels: list[list[Listing]] = [[] for _ in range(1 + max(depth.values()))]
    for listing in listings:
        levels[depth[listing.marks]].append(listing)
    return levels


def pack(reach: Reach, marks: Marks, place: tuple[int, int, bool]) -> tuple[bytes, list[Tensor]]:
    """struct Reach of kernels/reach.cuh, and the tables whose addresses it holds.

    place: (the listing of this launch that makes the marks, or -1; where the mask of another launch is kept, or -1;
    whether this reach copies it there).
    """
    window, taps, tables = (0,) * 8, (0, 0), []
    if isinstance(reach, Window):
        kind = 2 if reach.transposed else 1
        window = (*reach.kernel, *reach.stride, *reach.padding, *reach.dilation)
    else:
        kind = _KINDS[type(reach)]  # type: ignore[index]
    if isinstance(reach, Sources):
        spans = spans_of(reach.cols)
        tables = [reach.rows, reach.cols, *([] if spans is None else [spans])]
        tables = [t.to(marks.bits.device, torch.int32).contiguous() for t in tables]
        taps = (reach.rows.shape[1], reach.cols.shape[1])
    addresses = [t.data_ptr() for t in (marks.bits, marks.changed, *tables)]
    numbers = (kind, *marks.size, *window, *taps, *place)
    return struct.pack("=5Q16i", *addresses, *[0] * (5 - len(addresses)), *numbers), tables
