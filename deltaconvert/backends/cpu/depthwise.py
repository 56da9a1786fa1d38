"""Depthwise convolutions: each candidate by itself, from the map as it lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.backends.cpu import loops
from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.packed import Epilogue
from deltaconvert.backends.cpu.steps import chunks
from deltaconvert.backends.cpu.tiles import Tiles, Way
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.expanded import window_of
from deltaconvert.ops.fused import head_of
from deltaconvert.reach import Reach, Window

# A way beside those of tiles.py: it gathers no windows and computes no pixel in vain.
LISTED: Way = ((1, 1), "list")


class Depthwise(Tiles):
    """A depthwise convolution sums up nine products a value: to gather its windows takes longer than to compute it.

    Where a 1x1 convolution makes what the window reads (Expanded), it makes each pixel once for a chunk of the list.
    512 pixels of 384 channels, 3x3, on a Zen 3 core: 210 us as a list; as tiles 290 to compute them and 110 to gather.
    """

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        head = window_of(head_of(operator))
        by_channel = isinstance(head, Conv2d) and head.weight.shape[1] == 1 < head.groups == len(head.weight)
        return loops.FOUND and by_channel and super().fits(operator, reaches, inputs)

    def prepare(self) -> None:
        head, window = window_of(head_of(self.operator)), self.reaches[0]
        assert isinstance(head, Conv2d) and isinstance(window, Window)
        self._read = loops.read(window)
        self._weight = head.weight[:, 0].permute(1, 2, 0).contiguous()
        self._bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias.contiguous()
        super().prepare()
        if _clamps(self._compute.epilogue):
            self._ways.append(LISTED)

    def _compute_by(self, way: Way) -> None:
        self._listed = way == LISTED
        if not self._listed:
            super()._compute_by(way)
            return
        self.sizes, self.backwards = self._row_chunks(len(self._weight[0, 0])), None
        self.bind(Compute(self.operator, self._widths(), self.backend.orders))

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        if not self._listed:
            return super()._sparse(candidates, pixels)
        return self._by_pixels(candidates, pixels, self._computed)

    def _computed(self, places: Tensor) -> Tensor:
        from deltaconvert.backends.cpu import stencils  # numba takes time to import

        window, epilogue = self.reaches[0], self._compute.epilogue
        assert isinstance(window, Window)
        low, high = (*epilogue.scalars, 0.0, float("inf"))[:2]
        clamp = None if epilogue.attribute == "none" else (low, high)
        rows, index = self._rows_read(places, window)
        value = stencils.depthwise(rows, places, window, self._weight, self._bias, clamp, index)
        return self._compute.tail(value, self._taken_beside(places))

    def _rows_read(self, places: Tensor, window: Window) -> tuple[Tensor, Tensor | None]:
        """The rows that the window reads at `places`: the stored ones, or made for it; and see stencils.depthwise."""
        source, lead = self.inputs[0], self._compute.lead
        if lead is None:
            return source.rows, None
        _, pixels = loops.spread(places, len(source.mask), self._read, window.in_size)
        made = [lead.rows([source.rows.index_select(0, chunk)]) for chunk in chunks(pixels, self.sizes)]
        index = self.backend.scratch((source.pixel_count,), torch.int64)
        index.index_copy_(0, pixels, torch.arange(len(pixels)))
        return torch.cat(made) if len(made) > 1 else made[0], index


def _clamps(epilogue: Epilogue) -> bool:
    """The loop can do what oneDNN does to the sum: nothing, or limit it."""
    return not epilogue.adds and epilogue.attribute in ("none", "relu", "hardtanh")
