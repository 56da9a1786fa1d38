"""Deltas: the stored map, the mask of what changed, and how computed rows are committed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.backends.base import Amount, Map
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.reference import fill_unseen
from deltaconvert.layout import apart_from

WORDS = (torch.complex128, torch.float64)
# Share of a map's pixels: if more changed, the whole map is copied to N C H W. On two Zen 4 cores all of 2 channels at
# 720p takes 0.51 ms, a tenth of it 0.90 one by one, a hundredth 0.15; of 21 channels at 360x640 3.5, 1.2 and 0.15.
FEW = 1 / 16


class Edge:
    """One delta: values (N, C, H, W; channels last in memory), mask (N, 1, H, W), and the list of changed pixels.

    A mask is never written to after it was made, because edges share masks.
    """

    is_kept = True
    # To compute pixels that are no candidates would change them: they read narrow changes (narrow.py), which they do
    # not see. Elsewhere it gives the bits that are stored.
    keeps_others = False

    def __init__(self, kept: Map):
        n, channels, height, width = kept.shape
        self.threshold, self.beside = kept.threshold, 0  # bytes that its step keeps beside the map
        self.values = torch.empty(n, height, width, channels, dtype=kept.dtype).permute(0, 3, 1, 2)
        self.rows = self.values.permute(0, 2, 3, 1).view(-1, channels)
        self.pixel_count = n * height * width
        self.limits = self._limits()
        self._laid_out: Tensor | None = None  # made when it is first needed
        self._none = torch.zeros(n, 1, height, width, dtype=torch.bool)
        self.stand_still()
        self.reset(slice(None))

    def _limits(self) -> Tensor | None:
        """(C), the threshold of each channel; None if there is none, or if no compiled loop can compare with it."""
        amount, channels = self.threshold, self.rows.shape[1]
        if amount is None or not loops.FOUND or self.values.dtype not in loops.DTYPES:
            return None
        if isinstance(amount, Tensor):
            return amount.to(self.values.dtype) if amount.shape == (channels,) else None
        return torch.full((channels,), amount, dtype=self.values.dtype)

    def reset(self, streams: slice) -> None:
        fill_unseen(self.values[streams])

    def put(self, stream: int, values: Tensor) -> None:
        """Go on from `values` (C H W)."""
        self.values[stream] = values
        if self._laid_out is not None:
            self._laid_out[stream] = values

    def draw(self) -> None:
        """Fill the map with random values, to try a step on."""
        if self.values.is_floating_point():
            self.values.uniform_(-1, 1)
        else:
            self.values.random_(0, 2)

    def stand_still(self) -> None:
        self.mask, self.count, self.computed = self._none, 0, 0
        self._pixels: Tensor | None = None

    def mark(
        self, mask: Tensor, computed: int, count: int | None = None, pixels: Tensor | None = None
    ) -> None:
        """Set this frame's mask; `computed`: how many pixels were computed."""
        self.mask, self._pixels, self.computed = mask, pixels, computed
        self.count = int(mask.count_nonzero()) if count is None else count

    @property
    def known(self) -> Tensor | None:
        """The list of changed pixels, if there is one already."""
        return self._pixels

    @property
    def pixels(self) -> Tensor:
        """int64, the rows of the changed pixels."""
        if self._pixels is None:
            self._pixels = listed(self.mask)
        return self._pixels

    def adopt(self, new: Tensor, candidates: Tensor, inputs: Sequence[Edge]) -> None:
        """Commit a whole map that the dense operator computed."""
        new = apart_from(new.permute(0, 2, 3, 1).contiguous(), (edge.values for edge in inputs))
        # By way of a line: one channel may have kept the stride of a map N C H W, and torch picks kernels by strides.
        rows = new.view(-1).view(self.rows.shape)
        new = rows.view(new.shape)
        if self.threshold is None:
            if self.keeps_others:
                others = listed(candidates.logical_not())
                store(rows, others, self.rows.index_select(0, others))
            self.rows, self.values = rows, new.permute(0, 3, 1, 2)
            self.mark(candidates, self.pixel_count)
            return
        if self.limits is not None:
            mask, places = torch.zeros_like(candidates), listed(candidates)
            pixels = loops.renew(self.rows, places, rows, self.limits, None, mask.view(-1), whole=True)
            self.mark(mask, self.pixel_count, len(pixels), pixels)
            return
        changed = moved(self.rows - rows, self.threshold).logical_and_(candidates.view(-1))
        pixels = listed(changed)
        if 2 * len(pixels) > self.pixel_count:  # copy the fewer ones: those that stay, into the new map
            still = listed(changed.logical_not())
            store(rows, still, self.rows.index_select(0, still))
            self.rows, self.values = rows, new.permute(0, 3, 1, 2)
        else:
            store(self.rows, pixels, rows.index_select(0, pixels))
        self.mark(changed.view(candidates.shape), self.pixel_count, len(pixels), pixels)

    @property
    def changed(self) -> bool:
        return self.count > 0

    def counts(self) -> tuple[int, int]:
        return self.computed, self.count

    def dense(self) -> Tensor:
        """The map N C H W, read-only. Called in every frame in which a pixel changed; only changed pixels are
        copied."""
        if self.values.is_contiguous():  # a map of one channel lies as it would in a dense map
            return self.values
        if self._laid_out is None:
            self._laid_out = self.values.clone(memory_format=torch.contiguous_format)
        elif self.count <= FEW * self.pixel_count:
            new = self.rows.index_select(0, self.pixels).view(-1)
            self._laid_out.view(-1).index_copy_(0, planar(self.pixels, self.values.shape), new)
        else:
            for stream in self.mask.flatten(1).any(1).nonzero().view(-1).tolist():
                self._laid_out[stream] = self.values[stream]
        return self._laid_out

    def state_bytes(self) -> int:
        laid_out = 0 if self._laid_out is None else self._laid_out.nbytes
        return self.values.nbytes + self._none.nbytes + self.beside + laid_out


def store(rows: Tensor, places: Tensor, new: Tensor) -> None:
    """rows[places] = new, by the widest words that rows consist of, since torch copies word by word.

    8192 rows of 64 floats on a Zen 3 core: 490 us by floats, 240 by words of 16 bytes.
    """
    word = next((w for w in WORDS if rows.shape[1] * rows.itemsize % w.itemsize == 0), rows.dtype)
    if new.storage_offset() or not new.is_contiguous():
        new = new.clone(memory_format=torch.contiguous_format)
    rows.view(word).index_copy_(0, places, new.view(word))


def planar(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """int64 (n * C), the places of these rows' values in a contiguous map (N, C, H, W)."""
    _, channels, height, width = shape
    plane = height * width
    # Pixel p of stream s is element p of each of the stream's channel planes.
    first = pixels % plane + pixels // plane * (channels * plane)
    return (first.view(-1, 1) + torch.arange(channels) * plane).view(-1)


def listed(mask: Tensor) -> Tensor:
    if loops.FOUND and mask.is_contiguous():
        return loops.listed(mask)
    return mask.view(-1).nonzero().view(-1)


def any_set(mask: Tensor) -> bool:
    """Whether a contiguous mask has any bit set, by words of eight: 0.1 ms for a frame of 720p; any() takes 1."""
    flat = mask.view(-1)
    even = len(flat) // 8 * 8
    return bool(even and flat[:even].view(torch.int64).amax()) or bool(flat[even:].any())


def moved(by: Tensor, threshold: Amount) -> Tensor:
    """bool (rows): some channel moved by more than `threshold`; NaN moves always. `by`, how far, is overwritten."""
    by = by.abs_()
    still = (by <= threshold).all(1) if isinstance(threshold, Tensor) else by.amax(1) <= threshold
    return still.logical_not_()


class Commit:
    """Stores computed rows; with a threshold only those candidates that moved.

    candidates: given if rows of other pixels are computed as well.
    """

    def __init__(self, edge: Edge, candidates: Tensor | None):
        self.edge = edge
        self._candidates = None if candidates is None else candidates.view(-1)
        self._stored: list[Tensor] = []
        if edge.threshold is not None:
            self._mask = torch.zeros_like(edge.mask)

    def rows(self, places: Tensor, new: Tensor) -> None:
        edge = self.edge
        if edge.threshold is not None and edge.limits is not None:
            mask = self._mask.view(-1)
            self._stored.append(loops.renew(edge.rows, places, new, edge.limits, self._candidates, mask))
            return
        if edge.threshold is not None:
            changed = moved(edge.rows.index_select(0, places).sub_(new), edge.threshold)
            if self._candidates is not None:
                changed &= self._candidates.index_select(0, places)
            kept = changed.nonzero().view(-1)
            if len(kept) < len(places):
                places, new = places.index_select(0, kept), new.index_select(0, kept)
            self._stored.append(places)
        elif edge.keeps_others and self._candidates is not None:
            kept = self._candidates.index_select(0, places).nonzero().view(-1)
            places, new = places.index_select(0, kept), new.index_select(0, kept)
        store(edge.rows, places, new)

    def finish(self, candidates: Tensor, pixels: Tensor | None, computed: int) -> None:
        edge = self.edge
        if edge.threshold is None:
            edge.mark(candidates, computed, None if pixels is None else len(pixels), pixels)
            return
        if not self._stored:  # there was no candidate: a stride skipped all changes
            edge.mark(self._mask, computed, 0)
            return
        stored = self._stored[0] if len(self._stored) == 1 else torch.cat(self._stored)
        if edge.limits is None:
            self._mask.view(-1)[stored] = True
            edge.mark(self._mask, computed)
        else:
            edge.mark(self._mask, computed, len(stored), stored)
