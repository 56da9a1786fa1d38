"""Operators of a whole map that are combined from summaries of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.backends.cpu.chunks import CHUNK_BYTES, chunks
from deltaconvert.backends.cpu.edges import Commit, Edge
from deltaconvert.backends.cpu.steps import Step
from deltaconvert.ops.base import Operator
from deltaconvert.reach import Everything, Reach

# Pixels of a part, consecutive in memory. With fewer there is less to read again, with more there are fewer summaries.
PART = 64


class Parts(Step):
    """Means, deviations and the like: the summary of each part is kept, and only touched parts are read again.

    Nothing is accumulated: a result follows from the map as it stands, whatever came before it.
    """

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        whole = isinstance(reaches[0], Everything) and reaches[0].size == (1, 1)
        return whole and type(operator).of_parts is not Operator.of_parts

    def prepare(self) -> None:
        source = self.inputs[0]
        streams, channels, height, width = source.values.shape
        self._plane = height * width
        self._length = min(PART, 1 << (self._plane - 1).bit_length())
        self._count = -(-self._plane // self._length)
        places = torch.arange(self._count * self._length).view(self._count, self._length)
        self._counts = (places < self._plane).sum(1).double()
        every = torch.arange(streams).view(-1, 1, 1) * self._plane
        self._reads = (every + places.clamp(max=self._plane - 1)).view(-1, self._length)
        self._inside = (places < self._plane).repeat(streams, 1).unsqueeze(2)
        self._touched = torch.zeros(streams, self._count * self._length, dtype=torch.bool)
        largest = max(1, CHUNK_BYTES // (self._length * channels * source.values.element_size()))
        self._sizes = tuple(dict.fromkeys((largest, max(1, largest // 8), max(1, largest // 64))))
        self.rebuild()
        self.edge.beside = self._results.nbytes

    def rebuild(self) -> None:
        self._results = self._measure(torch.arange(len(self._reads)))

    def run(self) -> None:
        source = self.inputs[0]
        if not source.count:
            self.edge.stand_still()
            return
        self._touched[:, : self._plane] = source.mask.view(len(self._touched), -1)
        parts = self._touched.view(-1, self._length).any(1).nonzero().view(-1)
        self._results.index_copy_(0, parts, self._measure(parts))
        candidates = self.reaches[0].spread(source.mask)
        streams = candidates.view(-1).nonzero().view(-1)
        results = self._results.view(len(self._touched), self._count, -1)
        new = self.operator.combined(results, self._counts).to(source.values.dtype)
        commit = Commit(self.edge, None)
        commit.rows(streams, new.index_select(0, streams))
        commit.finish(candidates, streams, len(streams))

    def _measure(self, parts: Tensor) -> Tensor:
        """(parts, K), the summary of each of `parts`."""
        rows, found = self.inputs[0].rows, []
        for chunk in chunks(parts, self._sizes):
            pixels = rows.index_select(0, self._reads.index_select(0, chunk).view(-1))
            pixels = pixels.view(len(chunk), self._length, -1)
            found.append(self.operator.of_parts(pixels, self._inside.index_select(0, chunk)))
        return torch.cat(found)[: len(parts)]
