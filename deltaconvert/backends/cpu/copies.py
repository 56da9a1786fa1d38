"""Operators whose output pixels are copies of input pixels, or constants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.backends.cpu.compute import Compute, head_of, tail_of
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.steps import Step, chunks, is_pointlike
from deltaconvert.ops.base import Operator
from deltaconvert.reach import Reach, Sources


class Copies(Step):
    """Nearest interpolation, padding, crops: every output pixel is a copy of one input pixel, or a constant."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        first = reaches[0]
        copies = head_of(operator).copies and isinstance(first, Sources) and first.single
        free = all(stage.position_free for stage in tail_of(operator))
        return copies and free and all(map(is_pointlike, reaches[1:], inputs[1:]))

    def prepare(self) -> None:
        reach = self.reaches[0]
        assert isinstance(reach, Sources)
        self._compute = Compute(self.operator, self._widths())
        self._source = self._copied_from(0)
        streams = self.edge.mask.shape[0]
        self._outside = None if reach.orphans is None else reach.orphans.repeat(streams, 1).view(-1, 1)
        self.sizes = self._row_chunks()

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        pixels = listed(candidates)
        if len(pixels) >= self.dense_from * self.edge.pixel_count:
            return False
        commit = Commit(self.edge, None)
        for chunk in chunks(pixels, self.sizes):
            commit.rows(chunk, self._compute.tail(self._copied(chunk), self._taken_beside(chunk)))
        commit.finish(candidates, pixels, len(pixels))
        return True

    def _copied(self, places: Tensor) -> Tensor:
        head = head_of(self.operator)
        value = head.copied(self.inputs[0].rows.index_select(0, self._source.index_select(0, places)))
        if self._outside is not None:
            value = value.masked_fill(self._outside.index_select(0, places), head.fill)
        return value
