"""Pixel shuffle: every output pixel is a copy of some channels of an input pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.backends.cpu.copies import Copies
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.ops.pixel_shuffle import PixelShuffle
from deltaconvert.reach import Reach


class Shuffles(Copies):
    """Pixel shuffle: an output pixel takes every (factor * factor)-th of C * factor * factor channels."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        shuffles = isinstance(head_of(operator), PixelShuffle)
        return shuffles and tail_is_free(operator, reaches, inputs)

    def prepare(self) -> None:
        super().prepare()
        head = head_of(self.operator)
        assert isinstance(head, PixelShuffle)
        streams, _, height, width = self.edge.mask.shape
        self._parts = head.factor**2
        down, right = (torch.arange(side) % head.factor for side in (height, width))
        self._first = (down.view(-1, 1) * head.factor + right).view(-1).repeat(streams)

    def _copied(self, places: Tensor) -> Tensor:
        rows = self.inputs[0].rows
        pixels, first = (table.index_select(0, places) for table in (self._source, self._first))
        return rows.view(len(rows), -1, self._parts)[pixels, :, first]
