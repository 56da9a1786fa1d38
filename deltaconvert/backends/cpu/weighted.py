"""Smooth interpolation: every output pixel is a weighted sum of a few input pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.compute import Compute
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.sparse import Sparse
from deltaconvert.backends.cpu.steps import tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.ops.resample import Interpolate
from deltaconvert.reach import Reach, Sources


class Weighted(Sparse):
    """Bilinear, bicubic and area interpolation: each pixel sums its sources, row by row, as one bag of weighted rows.

    torch sums in another order, so full frames are computed in this way as well.
    """

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        resizes = isinstance(head_of(operator), Interpolate) and isinstance(reaches[0], Sources)
        precise = inputs[0].values.dtype in (torch.float32, torch.float64)
        return resizes and precise and tail_is_free(operator, reaches, inputs)

    def prepare(self) -> None:
        head, reach, values = head_of(self.operator), self.reaches[0], self.inputs[0].values
        assert isinstance(head, Interpolate) and isinstance(reach, Sources)
        self._compute = Compute(self.operator, self._widths(), self.backend.orders)
        weights = down, across = head.weights(reach, tuple(values.shape), values.dtype)
        if not self._agrees(head, reach, weights):
            return
        _, _, height, width = values.shape
        # For each output pixel of a stream: its sources and their weights.
        rows, cols = (reach.rows * width).int()[:, None, :, None], reach.cols.int()[None, :, None, :]
        self._source_plane, self._plane = height * width, len(reach.rows) * len(reach.cols)
        self._bags = (rows + cols).reshape(self._plane, -1)
        self._weights = (down[:, None, :, None] * across[None, :, None, :]).reshape(self._plane, -1)
        self.sizes = self._row_chunks()

    def _agrees(self, head: Interpolate, reach: Sources, weights: tuple[Tensor, Tensor]) -> bool:
        """Whether the weights give what the operator gives. If they do not, torch computes the whole map."""
        sizes = height, width = self.inputs[0].values.shape[2:]
        waves = torch.arange(height * width, dtype=weights[0].dtype).sin().view(1, 1, height, width)
        rows, cols = (
            torch.zeros(len(table), size, dtype=waves.dtype).scatter_add_(1, table, part)
            for table, size, part in zip((reach.rows, reach.cols), sizes, weights, strict=True)
        )
        # Weights and their sum in single precision.
        return torch.allclose(rows @ waves[0, 0] @ cols.t(), head(waves)[0, 0], rtol=0, atol=1e-5)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        return self._by_pixels(
            candidates,
            pixels,
            lambda places: self._compute.tail(self._summed(places), self._taken_beside(places)),
        )

    def _summed(self, pixels: Tensor) -> Tensor:
        """(n, C), the values of `pixels`."""
        source, inside, streams = self.inputs[0], pixels, None
        if len(source.values) > 1:
            streams = pixels // self._plane
            inside = pixels - streams * self._plane
        bags, weights = (table.index_select(0, inside) for table in (self._bags, self._weights))
        if streams is not None:
            bags += (streams * self._source_plane).int().view(-1, 1)
        return _sums(source.rows, bags, weights)

    def _whole(self, maps: Sequence[Tensor]) -> Tensor:
        return self._compute.behind(self._resized, maps) if self.sizes else self._compute.whole(maps)

    def _resized(self, values: Tensor) -> Tensor:
        """N C H W -> N C H' W', stream by stream."""
        planes = values.permute(0, 2, 3, 1).flatten(1, 2)
        rows = torch.stack([_sums(plane, self._bags, self._weights) for plane in planes])
        return rows.unflatten(1, self.edge.values.shape[2:]).permute(0, 3, 1, 2)


def _sums(rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """(n, C): of bag i, the sum of rows[bags[i, k]] * weights[i, k] over k, in that order."""
    return F.embedding_bag(bags, rows, per_sample_weights=weights, mode="sum")
