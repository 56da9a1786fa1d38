"""A step: one delta operator, bound to its edges; how it chooses between its sparse way and the dense operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu import loops
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.masks import Spread
from deltaconvert.backends.reference import fill_unseen
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import stages_of
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

if TYPE_CHECKING:
    from deltaconvert.backends.cpu import Backend

# A chunk of rows. A call of oneDNN takes 0.06 ms beside its work, and few rows leave the product waiting for its
# weights: 368 rows of 2048 -> 512 on a Zen 3 core take 16 ms by 64 rows, 14 by 128, 12 by 256 and by 512.
CHUNK_BYTES, CHUNK_ROWS = 4 << 20, 8192
# The sizes of chunks, as shares of the largest. Few sizes pad more, many take longer to prepare.
SHARES = (1, 2, 4, 8, 32)
FULL_ENOUGH = 0.8  # a chunk filled so far costs less than several smaller ones
# Two orders of summation agree on a random value more often than not: fewer values than this prove nothing.
ENOUGH_VALUES = 4096
# Streams are computed one by one where their maps have so many pixels: more at a time are no faster, and take as many
# times as long to try. Of smaller maps several are computed at a time: they share the reading of weights.
ENOUGH_PIXELS = 1024
RUNS = 3  # the best of them counts: what disturbs a run only ever makes it slower


class Step:
    """One operator. As it stands here it computes the whole map as soon as any pixel is a candidate."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        """Whether this kind of step can run the operator."""
        return True

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        edge: Edge,
    ):
        self.backend, self.operator, self.reaches, self.inputs, self.edge = (
            backend,
            operator,
            reaches,
            inputs,
            edge,
        )
        self.sizes: tuple[int, ...] = ()  # of chunks; none where there is no sparse way
        self.backwards: bool | None = None  # take the list from its end; None where pieces never overlap
        self.dense_from = 0.0  # share of computed pixels from which the dense operator runs
        self._origins: dict[int, Tensor] = {}
        self._spreads: dict[int, Spread] = {}
        self._dense_found: dict[str, Any] = {}  # measured once, however often sparse ways are tried
        self.prepare()
        # The streams that the dense operator takes at a time.
        self.together = few_streams(edge.values.shape) if self.sizes else len(edge.values)

    def prepare(self) -> None:
        """What a kind of step needs beside the operator and its edges."""

    def rebuild(self) -> None:
        """Make anew what is kept beside the edges: their values came from elsewhere."""

    def run(self) -> None:
        if not any(source.count for source in self.inputs):
            self.edge.stand_still()
            return
        candidates, pixels = self._candidates()
        if not self._sparse(candidates, pixels):
            self._compute_all(candidates)

    def _compute_all(self, candidates: Tensor) -> None:
        """The dense operator's way; commit the candidates."""
        edge = self.edge
        if self.together == len(edge.values) or edge.threshold is not None:
            edge.adopt(self._dense(), candidates, self.inputs)
            return
        for own, made in zip(edge.values.split(self.together), self._in_groups(), strict=True):
            own.copy_(made)
        edge.mark(candidates, edge.pixel_count)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        """Compute the candidates and commit them; False if the dense operator should."""
        return False

    def _by_pixels(
        self, candidates: Tensor, pixels: Tensor | None, compute: Callable[[Tensor], Tensor]
    ) -> bool:
        """The sparse way of steps that compute any list of pixels: (n) -> (n, C'). False as _sparse says it."""
        if pixels is None:
            pixels = listed(candidates)
        if len(pixels) >= self.dense_from * self.edge.pixel_count:
            return False
        commit = Commit(self.edge, None)
        for chunk in chunks(pixels, self.sizes):
            commit.rows(chunk, compute(chunk))
        commit.finish(candidates, pixels, len(pixels))
        return True

    def _dense(self) -> Tensor:
        made = list(self._in_groups())
        return made[0] if len(made) == 1 else torch.cat(made)

    def _in_groups(self) -> Iterator[Tensor]:
        """The map, some streams at a time: a larger batch could have other bits than the one that was tried."""
        groups = (source.values.split(self.together) for source in self.inputs)
        return (self._whole(maps) for maps in zip(*groups, strict=True))

    def _whole(self, maps: Sequence[Tensor]) -> Tensor:
        return self.operator(*maps)

    def _candidates(self) -> tuple[Tensor, Tensor | None]:
        """(mask, list of its pixels if it is known already, or soon made)."""
        mask: Tensor | None = None
        moving = [(place, source) for place, source in enumerate(self.inputs) if source.count]
        for place, source in moving:
            if source.mask is not mask:
                mask = self._spread(place, mask)
        assert mask is not None
        if not loops.FOUND or any(source.count == source.pixel_count for _, source in moving):
            return mask, None
        known = [source.pixels for _, source in moving if source.mask is mask and not self._in_order]
        return mask, known[0] if known else listed(mask)

    @property
    def _in_order(self) -> bool:
        """Lists of candidates have to be: others' lists need not."""
        return False

    def _spread(self, place: int, onto: Tensor | None) -> Tensor:
        """The pixels that input `place` makes candidates, and those of `onto`."""
        reach, mask = self.reaches[place], self.inputs[place].mask
        if loops.FOUND and isinstance(reach, Window) and not reach.transposed and reach.orphans is None:
            if place not in self._spreads:
                self._spreads[place] = Spread(reach)
            return self._spreads[place](mask, onto)
        mask = reach.spread(mask)
        return mask if onto is None else mask | onto

    def _widths(self) -> list[int | None]:
        """The channels of each input that is a whole map; None for a gate."""
        return [
            None if isinstance(reach, Everything) else source.values.shape[1]
            for reach, source in zip(self.reaches, self.inputs, strict=True)
        ]

    def _row_chunks(self, between: int = 0) -> tuple[int, ...]:
        """between: the channels of a map that the step makes on its way."""
        width = max(between, self.edge.rows.shape[1], *(source.rows.shape[1] for source in self.inputs))
        rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * width))
        return sizes_below(1 << max(6, rows.bit_length() - 1), 8, self.edge.pixel_count)

    def _taken_beside(self, places: Tensor) -> list[Tensor]:
        """The rows of all inputs but the first."""
        return self._taken(places, 1)

    def _taken(self, places: Tensor, start: int = 0) -> list[Tensor]:
        """The rows of the inputs from `start` on at `places`; of a gate the row of each place's stream."""
        taken = []
        for place, (reach, source) in enumerate(zip(self.reaches, self.inputs, strict=True)):
            if place < start:
                continue
            if isinstance(reach, Pixel):
                taken.append(source.rows.index_select(0, places))
            elif isinstance(reach, Sources):
                taken.append(source.rows.index_select(0, self._copied_from(place).index_select(0, places)))
            elif len(source.rows) == 1:
                taken.append(source.rows)
            else:
                plane = self.edge.pixel_count // len(source.rows)
                taken.append(source.rows.index_select(0, places // plane))
        return taken

    def _copied_from(self, place: int) -> Tensor:
        """int64 (pixels), the row of input `place` that each output pixel is a copy of."""
        if place not in self._origins:
            reach, (streams, _, height, width) = self.reaches[place], self.inputs[place].values.shape
            assert isinstance(reach, Sources)
            first = torch.arange(streams).view(-1, 1, 1) * (height * width)
            rows, cols = reach.rows.clamp(min=0).view(-1, 1), reach.cols.clamp(min=0).view(1, -1)
            self._origins[place] = (first + rows * width + cols).view(-1)
        return self._origins[place]

    def of_few_streams(self) -> Step:
        """The same step, for as many streams as the dense operator takes at a time."""
        if self.together == len(self.edge.values):
            return self
        edges = {source: self._narrow(source) for source in (*self.inputs, self.edge)}
        sources = [edges[source] for source in self.inputs]
        return type(self)(self.backend, self.operator, self.reaches, sources, edges[self.edge])

    def _narrow(self, edge: Edge) -> Edge:
        shape = self.together, *edge.values.shape[1:]
        return Edge(Map(shape, edge.values.dtype, edge.values.device, edge.threshold))

    def settle(self, notes: dict[str, Any]) -> None:
        """Decide at plan time between the sparse way and the dense operator; the state starts over after it.

        Where their bits differ the sparse way computes every frame: switching would make a pixel's value depend on
        how much changed elsewhere. So would chunk sizes whose bits differ, and then only the smallest is used.
        """
        if not self.sizes:
            return
        if not notes:
            notes.update(self._compare())
        self.dense_from, self.sizes = notes["dense_from"], notes["sizes"]

    def _compare(self) -> dict[str, Any]:
        edge, sizes = self.edge, self.sizes
        for source in self.inputs:
            source.draw()
        threshold, edge.threshold = edge.threshold, None
        every = torch.ones_like(edge.mask)
        few = torch.zeros_like(every)
        wanted = max(50, ENOUGH_VALUES // edge.rows.shape[1])
        few.view(-1)[:: max(1, edge.pixel_count // wanted)] = True

        def bits(of: tuple[int, ...], mask: Tensor) -> Tensor:
            self.dense_from, self.sizes = 2.0, of
            fill_unseen(edge.rows)
            self._sparse(mask, None)
            return edge.rows.clone()

        sparse, steady = bits(sizes, every), True
        if self.backwards is not None:
            self.backwards = True  # of two tiles that share a pixel, the other one writes last
            steady = _same(sparse, bits(sizes, every))
            self.backwards = False
        for size in sizes:
            rows = bits((size,), few)
            if not _same(rows[few.view(-1)], sparse[few.view(-1)]):
                sizes = sizes[-1:]
                sparse = bits(sizes, every)
                break
        self.sizes = sizes
        self._compute_all(every)
        edge.threshold = threshold  # comparing takes its time as well
        enough = edge.rows.numel() >= ENOUGH_VALUES
        replaceable = enough and _same(sparse, edge.rows)
        found: dict[str, Any] = {
            "sizes": sizes,
            "steady": steady,
            "seconds": self._sparse_seconds(),
        }
        if replaceable:
            self._dense_found = self._dense_found or self._dense_way(every)
            found |= self._dense_found
        # A mask of ones is what the dense operator is for.
        share = min(1.0, found["dense_seconds"] / found["seconds"]) if replaceable else 2.0
        edge.stand_still()
        for touched in (edge, *self.inputs):
            touched.reset(slice(None))
        return {"dense_from": share} | found

    def _sparse_seconds(self) -> float:
        """Of a pixel that the sparse way computes, measured on the upper quarter of the map."""
        edge = self.edge
        quarter = torch.zeros_like(edge.mask)
        quarter[:, :, : -(-quarter.shape[2] // 4)] = True
        return best_of(RUNS, lambda: self._sparse(quarter, None)) / max(edge.computed, 1)

    def _dense_way(self, every: Tensor) -> dict[str, Any]:
        """How the dense operator runs best, and the seconds of a pixel."""
        return {"dense_seconds": best_of(RUNS, lambda: self._compute_all(every)) / self.edge.pixel_count}


def few_streams(shape: Sequence[int]) -> int:
    """So many streams of a map (N, C, H, W) have enough pixels, if there are as many; they divide N."""
    streams, plane = shape[0], shape[2] * shape[3]
    enough = (few for few in range(1, streams) if streams % few == 0 and few * plane >= ENOUGH_PIXELS)
    return next(enough, streams)


def chunks(indices: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut `indices` into pieces of the given sizes, largest first; a piece that is not full repeats its last index."""
    pieces, start, left = [], 0, len(indices)
    for size in sizes:
        while left > FULL_ENOUGH * size or (left and size == sizes[-1]):
            piece = indices[start : start + size]
            if left < size:
                piece = torch.cat([piece, piece[-1:].expand(size - left)])
            pieces.append(piece)
            start, left = start + size, max(0, left - size)
    return pieces


def sizes_below(largest: int, least: int, items: int) -> tuple[int, ...]:
    """The sizes of chunks of up to so many items: `largest`, or what all items fill, and shares of it, not below
    `least`."""
    largest = min(largest, 1 << (items - 1).bit_length())
    return tuple(dict.fromkeys(max(least, largest // share) for share in SHARES))


def is_pointlike(reach: Reach, source: Edge) -> bool:
    """The input can be taken pixel by pixel: it is read there, or it is a gate, or stretched."""
    if isinstance(reach, Sources):
        return reach.single and reach.orphans is None
    return isinstance(reach, Pixel) or (
        isinstance(reach, Everything) and tuple(source.values.shape[2:]) == (1, 1) and reach.size != (1, 1)
    )


def tail_is_free(operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
    """What follows the head can be computed for any pixels apart from the rest."""
    free = all(stage.position_free for stage in stages_of(operator)[1:])
    return free and all(map(is_pointlike, reaches[1:], inputs[1:]))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, but for the payload of NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def best_of(runs: int, call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
