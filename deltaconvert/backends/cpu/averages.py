"""Average pools whose windows hold different numbers of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.backends.cpu.tiles import Tiles
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.ops.pool import AvgPool2d
from deltaconvert.reach import Reach, Window


class Averages(Tiles):
    """Average pools with ceil_mode, or that do not count padding: a sum for each window, divided by its own divisor."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        return isinstance(head_of(operator), AvgPool2d) and tail_is_free(operator, reaches, inputs)

    def prepare(self) -> None:
        super().prepare()
        head, window, values = head_of(self.operator), self.reaches[0], self.inputs[0].values
        assert isinstance(head, AvgPool2d) and isinstance(window, Window)
        self._divisors = head.divisors(window.in_size).to(values.dtype).view(-1, 1).repeat(len(values), 1)

    def _placed(self, value: Tensor, places: Tensor) -> Tensor:
        return value.div_(self._divisors.index_select(0, places))
