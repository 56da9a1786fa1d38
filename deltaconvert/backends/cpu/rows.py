"""Operators that compute any list of pixels: a list of rows is a batch of 1x1 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.steps import is_pointlike
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.reach import Reach


class Rows(Computing):
    """Pointwise operators, 1x1 convolutions among them: a list of pixels is a batch of 1x1 images."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        free = operator.position_free and not head_of(operator).copies
        return free and all(map(is_pointlike, reaches, inputs))

    def prepare(self) -> None:
        self.sizes = self._row_chunks()
        self.bind(Compute(self.operator, self._widths(), self.backend.orders))

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        return self._by_pixels(candidates, pixels, lambda places: self._compute.rows(self._taken(places)))
