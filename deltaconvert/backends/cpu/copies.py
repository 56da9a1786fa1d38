"""Operators whose output pixels are copies of input pixels, or constants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.sparse import Sparse
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.reach import Reach, Sources


class Copies(Sparse):
    """Nearest interpolation, padding, crops: every output pixel is a copy of one input pixel, or a constant."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        first = reaches[0]
        copies = head_of(operator).copies and isinstance(first, Sources) and first.single
        return copies and tail_is_free(operator, reaches, inputs)

    def prepare(self) -> None:
        reach = self.reaches[0]
        assert isinstance(reach, Sources)
        self._compute = Compute(self.operator, self._widths(), self.backend.orders)
        self._source = self._copied_from(0)
        streams = self.edge.mask.shape[0]
        self._outside = None if reach.orphans is None else reach.orphans.repeat(streams, 1).view(-1, 1)
        self.sizes = self._row_chunks()

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        return self._by_pixels(
            candidates,
            pixels,
            lambda places: self._compute.tail(self._copied(places), self._taken_beside(places)),
        )

    def _copied(self, places: Tensor) -> Tensor:
        head = head_of(self.operator)
        value = head.copied(self.inputs[0].rows.index_select(0, self._source.index_select(0, places)))
        if self._outside is not None:
            value = value.masked_fill(self._outside.index_select(0, places), head.fill)
        return value
