"""Operators that compute any list of pixels: a list of rows is a batch of 1x1 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.compute import Compute, head_of
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.steps import chunks, is_pointlike
from deltaconvert.ops.base import Operator
from deltaconvert.reach import Reach


class Rows(Computing):
    """Pointwise operators, 1x1 convolutions among them: a list of pixels is a batch of 1x1 images."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        free = operator.position_free and not head_of(operator).copies
        return free and all(map(is_pointlike, reaches, inputs))

    def prepare(self) -> None:
        self.sizes = self._row_chunks()
        self.bind(Compute(self.operator, self._widths()))

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        if pixels is None:
            pixels = listed(candidates)
        if len(pixels) >= self.dense_from * self.edge.pixel_count:
            return False
        commit = Commit(self.edge, None)
        for chunk in chunks(pixels, self.sizes):
            commit.rows(chunk, self._compute.rows(self._taken(chunk)))
        commit.finish(candidates, pixels, len(pixels))
        return True
