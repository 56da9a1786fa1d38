"""Steps that have a sparse way besides the dense operator, and how they choose between the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu.chunks import CHUNK_BYTES, CHUNK_ROWS, chunks, sizes_below
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.steps import Step
from deltaconvert.backends.reference import fill_unseen

# Two orders of summation mostly agree on a random value, so that fewer values than this prove nothing.
ENOUGH_VALUES = 4096
# Streams are computed one by one if their maps have so many pixels: more at a time are no faster, and take longer to
# try. Streams with smaller maps are computed several at a time, because they share the reading of weights.
ENOUGH_PIXELS = 1024
RUNS = 3  # the best of them counts, since disturbances only make a run slower


class Sparse(Step):
    """A step that can compute only its candidates, and uses the dense operator where that is faster."""

    def __init__(self, *bound: Any):
        self.sizes: tuple[int, ...] = ()  # of chunks; empty if there is no usable sparse way
        # Whether to take the list from its end; None if pieces never overlap.
        self.backwards: bool | None = None
        self.dense_from = 0.0  # share of computed pixels from which the dense operator runs
        self._dense_found: dict[str, Any] = {}  # measured once for all sparse ways that are tried
        super().__init__(*bound)
        # The streams that the dense operator takes at a time.
        self.together = few_streams(self.edge.values.shape) if self.sizes else len(self.edge.values)

    def _update(self, candidates: Tensor, pixels: Tensor | None) -> None:
        if not (self.sizes and self._sparse(candidates, pixels)):
            self._compute_all(candidates)

    def _compute_all(self, candidates: Tensor) -> None:
        """Compute by the dense operator, and commit the candidates."""
        edge = self.edge
        if self.together == len(edge.values) or edge.threshold is not None or edge.keeps_others:
            edge.adopt(self._dense(), candidates, self.inputs)
            return
        for own, made in zip(edge.values.split(self.together), self._in_groups(), strict=True):
            own.copy_(made)
        edge.mark(candidates, edge.pixel_count)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        """Compute the candidates and commit them. False, with nothing done, if the dense operator should."""
        raise NotImplementedError

    def _by_pixels(
        self, candidates: Tensor, pixels: Tensor | None, compute: Callable[[Tensor], Tensor]
    ) -> bool:
        """The sparse way of steps that compute any list of pixels: (n) -> (n, C'). False as in _sparse."""
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
        """Compute the map for some streams at a time, since a larger batch could have other bits than what was
        tried."""
        groups = (source.values.split(self.together) for source in self.inputs)
        return (self._whole(maps) for maps in zip(*groups, strict=True))

    def _whole(self, maps: Sequence[Tensor]) -> Tensor:
        return self.operator(*maps)

    def _row_chunks(self) -> tuple[int, ...]:
        width = max(self.edge.rows.shape[1], *(source.rows.shape[1] for source in self.inputs))
        rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * width))
        return sizes_below(1 << max(6, rows.bit_length() - 1), 8, self.edge.pixel_count)

    def of_few_streams(self) -> Sparse:
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

        If their bits differ, the sparse way computes every frame, because a switch would make a pixel's value depend on
        how much changed elsewhere. So would sizes of chunks whose bits differ: then only the smallest is used.
        """
        if not self.sizes:
            return
        if not notes:
            notes.update(self._compare())
        self.dense_from, self.sizes = notes["dense_from"], notes["sizes"]

    def _compare(self) -> dict[str, Any]:
        """Run both ways on random maps, and return what the decision needs; keep the fastest chunks whose bits
        agree."""
        edge, every = self.edge, torch.ones_like(self.edge.mask)
        for source in self.inputs:
            source.draw()
        threshold, edge.threshold = edge.threshold, None
        sparse, steady = self._sparse_bits(every)
        self._compute_all(every)
        edge.threshold = threshold  # comparing takes its time as well
        enough = edge.rows.numel() >= ENOUGH_VALUES
        replaceable = enough and _same(sparse, edge.rows)
        found: dict[str, Any] = {"sizes": self.sizes, "steady": steady, "seconds": self._sparse_seconds()}
        if replaceable:
            self._dense_found = self._dense_found or self._dense_way(every)
            found |= self._dense_found
        # A mask of ones is what the dense operator is for.
        share = min(1.0, found["dense_seconds"] / found["seconds"]) if replaceable else 2.0
        edge.stand_still()
        for touched in (edge, *self.inputs):
            touched.reset(slice(None))
        return {"dense_from": share} | found

    def _sparse_bits(self, every: Tensor) -> tuple[Tensor, bool]:
        """(all rows as the sparse way makes them; whether tiles that share a pixel agree about it).

        If a size of chunks gives other bits than the rest, only the smallest is left in `sizes`.
        """
        sparse, steady = self._bits(self.sizes, every), True
        if self.backwards is not None:
            self.backwards = True  # so that of two tiles that share a pixel the other one writes last
            steady = _same(sparse, self._bits(self.sizes, every))
            self.backwards = False
        few = torch.zeros_like(every)
        wanted = max(50, ENOUGH_VALUES // self.edge.rows.shape[1])
        few.view(-1)[:: max(1, self.edge.pixel_count // wanted)] = True
        sizes, some = self.sizes, few.view(-1)
        if not all(_same(self._bits((size,), few)[some], sparse[some]) for size in sizes):
            sizes = sizes[-1:]
            sparse = self._bits(sizes, every)
        self.sizes = sizes
        return sparse, steady

    def _bits(self, sizes: tuple[int, ...], mask: Tensor) -> Tensor:
        """The rows after the sparse way computed only the pixels of a mask, in chunks of these sizes."""
        self.dense_from, self.sizes = 2.0, sizes
        fill_unseen(self.edge.rows)
        self._sparse(mask, None)
        return self.edge.rows.clone()

    def _sparse_seconds(self) -> float:
        """The seconds of a pixel that the sparse way computes, measured on the upper quarter of the map."""
        edge = self.edge
        quarter = torch.zeros_like(edge.mask)
        quarter[:, :, : -(-quarter.shape[2] // 4)] = True
        return best_of(RUNS, lambda: self._sparse(quarter, None)) / max(edge.computed, 1)

    def _dense_way(self, every: Tensor) -> dict[str, Any]:
        """How the dense operator runs best, and its seconds for a pixel."""
        return {"dense_seconds": best_of(RUNS, lambda: self._compute_all(every)) / self.edge.pixel_count}


def few_streams(shape: Sequence[int]) -> int:
    """How many streams of a map (N, C, H, W) have enough pixels together; a divisor of N."""
    streams, plane = shape[0], shape[2] * shape[3]
    enough = (few for few in range(1, streams) if streams % few == 0 and few * plane >= ENOUGH_PIXELS)
    return next(enough, streams)


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
