"""Masks on the device and the lists of pixels made from them: `struct Listing` of kernels/masks.cu.

At threshold 0 masks depend on masks alone. So the lists of all steps behind a *source*, a node that compares, are made
in one launch right after it: those of a network without thresholds behind its input.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cuda.tail import device_bytes
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

THREADS = 1024
SHARERS = 8  # blocks of a cluster, which share the masks of a stream
SHARED_BYTES = 40 << 10  # for the parameters of a launch
_KINDS = {Pixel: 0, Sources: 3, Everything: 4}  # the enum of kernels/masks.cu; windows are 1, transposed 2


@dataclass(eq=False)
class Marks:
    """The changed pixels of an edge.

    bits: int32 (N, H, (W + 31) / 32), one a pixel; changed: int32 (N), how many of each stream. source: the place among
    the steps of the last node that compares of those that they depend on. listed: the list of them, where there is one.
    seen: the one window that they are seen by, and where from. covers: Marks whose pixels are always among these.
    """

    size: tuple[int, int]
    bits: Tensor
    changed: Tensor
    source: int
    listed: Listed | None = None
    seen: tuple[Window, Marks] | None = None
    covers: frozenset[Marks] = frozenset()

    def dense(self) -> Tensor:
        """bool (N, 1, H, W)."""
        places = torch.arange(32, dtype=torch.int32, device=self.bits.device)
        return (self.bits[..., None] >> places & 1).bool().flatten(2)[..., : self.size[1]].unsqueeze(1)

    def put(self, mask: Tensor) -> None:
        """Mark what torch found, bool (N, 1, H, W)."""
        places = torch.arange(32, dtype=torch.int32, device=mask.device)
        padded = F.pad(mask[:, 0].to(torch.int32), (0, self.bits.shape[2] * 32 - self.size[1]))
        self.bits.copy_((padded.unflatten(2, (-1, 32)) << places).sum(3, dtype=torch.int32))
        self.changed.copy_(mask.sum((1, 2, 3)))

    def cover(self, other: Marks) -> bool:
        if other is self or other in self.covers:
            return True
        if self.seen is None or other.seen is None or self.seen[1] is not other.seen[1]:
            return False
        return _holds(self.seen[0], other.seen[0])


@dataclass(eq=False)
class Listed:
    """A list of pixels on the device. launch: how many kernels the frame had launched when it was made."""

    places: Tensor  # int32
    count: Tensor  # int32 (1)
    launch: int = 0


@dataclass(eq=False)
class Listing:
    """How the candidates of a step come from the marks of its inputs.

    after: the listings of the same launch that it reads.
    """

    marks: Marks
    listed: Listed
    all: bool
    pairs: list[tuple[Reach, Marks]]
    tables: list[Tensor] = field(default_factory=list)

    def pack(self, first: int, behind: bool) -> bytes:
        addresses = [
            t.data_ptr() for t in (self.marks.bits, self.marks.changed, self.listed.places, self.listed.count)
        ]
        return struct.pack("=4Q6i", *addresses, first, len(self.pairs), self.all, behind, *self.marks.size)


class Listings:
    """The listings behind one source: a launch, or several where their parameters need more room."""

    def __init__(self) -> None:
        self._listings: list[Listing] = []
        self._launches: list[tuple[Tensor, int]] = []

    def add(self, listing: Listing) -> None:
        self._listings.append(listing)

    def run(self, backend: Any) -> None:
        if not self._launches:
            self._pack()
        device = self._listings[0].marks.bits.device
        sharers = SHARERS if torch.cuda.get_device_capability(device) >= (9, 0) else 1
        kernel = backend.kernel("masks.cu", "spread", torch.float32, SHARED_BYTES, SHARERS=sharers)
        streams = len(self._listings[0].marks.bits)
        for table, count in self._launches:
            longs = np.int32(table.numel() // 8)
            backend.launch(kernel, (sharers, streams), THREADS, table, longs, np.int32(count))
        for listing in self._listings:
            listing.listed.launch = backend.launches

    def _pack(self) -> None:
        device = self._listings[0].marks.bits.device
        for part in _parts(_in_order(self._listings)):
            self._launches.append((device_bytes(table_of(part), device), len(part)))


def table_of(listings: Sequence[tuple[Listing, bool]]) -> bytes:
    """The parameters of `spread`: its listings, then their reaches."""
    packed, reaches = b"", b""
    for listing, behind in listings:
        packed += listing.pack(len(reaches) // REACH_BYTES, behind)
        for reach, marks in listing.pairs:
            bytes_of_reach, tables = pack(reach, marks)
            reaches += bytes_of_reach
            listing.tables += tables
    return packed + reaches


def _in_order(listings: Sequence[Listing]) -> list[tuple[Listing, bool]]:
    """By the number of listings that one waits for; and whether it is the first to wait for those before it."""
    depth: dict[Marks, int] = {}
    for listing in listings:
        depth[listing.marks] = 1 + max((depth.get(marks, -1) for _, marks in listing.pairs), default=-1)
    ordered = sorted(listings, key=lambda listing: depth[listing.marks])
    levels = [depth[listing.marks] for listing in ordered]
    return [(o, i > 0 and levels[i] != levels[i - 1]) for i, o in enumerate(ordered)]


def _parts(listings: Sequence[tuple[Listing, bool]]) -> list[list[tuple[Listing, bool]]]:
    parts: list[list[tuple[Listing, bool]]] = [[]]
    for listing, behind in listings:
        size = sum(
            LISTING_BYTES + REACH_BYTES * len(other.pairs) for other, _ in [*parts[-1], (listing, behind)]
        )
        if size > SHARED_BYTES:
            parts.append([])
        parts[-1].append((listing, behind))
    return parts


LISTING_BYTES, REACH_BYTES = 56, 88


def pack(reach: Reach, marks: Marks) -> tuple[bytes, list[Tensor]]:
    """struct Reach of kernels/masks.cu, and the tables whose addresses it holds."""
    window, taps, tables = (0,) * 8, (0, 0), []
    if isinstance(reach, Window):
        kind = 2 if reach.transposed else 1
        window = (*reach.kernel, *reach.stride, *reach.padding, *reach.dilation)
    else:
        kind = _KINDS[type(reach)]  # type: ignore[index]
    if isinstance(reach, Sources):
        tables = [t.to(marks.bits.device, torch.int32).contiguous() for t in (reach.rows, reach.cols)]
        taps = (reach.rows.shape[1], reach.cols.shape[1])
    addresses = [t.data_ptr() for t in (marks.bits, marks.changed, *tables)]
    numbers = (kind, *marks.size, *window, *taps, 0)
    return struct.pack("=4Q14i", *addresses, *[0] * (4 - len(addresses)), *numbers), tables


def needed(pairs: Sequence[tuple[Reach, Marks]]) -> list[tuple[Reach, Marks]]:
    """Without the inputs, read pixel by pixel, whose changes are among those of another such input."""
    kept: list[tuple[Reach, Marks]] = []
    for reach, marks in pairs:
        if isinstance(reach, Pixel):
            if any(isinstance(r, Pixel) and m.cover(marks) for r, m in kept):
                continue
            kept = [(r, m) for r, m in kept if not (isinstance(r, Pixel) and marks.cover(m))]
        kept.append((reach, marks))
    return kept


def keeps_places(reach: Reach) -> bool:
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


def _holds(outer: Window, inner: Window) -> bool:
    """Whether the taps of a window are among those of another over the same map."""
    if (
        outer.transposed
        or inner.transposed
        or outer.out_size != inner.out_size
        or outer.stride != inner.stride
    ):
        return False
    (rows, cols), (inner_rows, inner_cols) = _taps(outer), _taps(inner)
    return inner_rows <= rows and inner_cols <= cols


def _taps(window: Window) -> list[set[int]]:
    """Of the rows and of the columns, from the output pixel's own place."""
    sides = zip(window.kernel, window.padding, window.dilation, strict=True)
    return [{k * dilation - padding for k in range(kernel)} for kernel, padding, dilation in sides]
