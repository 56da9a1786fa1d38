"""Pixels from other places, and weighted sums of some."""

from __future__ import annotations

import torch

from deltaconvert.export.graph import Body, Scope
from deltaconvert.export.ops import spell
from deltaconvert.export.sparse.kind import Call, Headed
from deltaconvert.export.sparse.places import gathered
from deltaconvert.ops.resample import Interpolate
from deltaconvert.reach import Sources


class Copies(Headed):
    """Pixels copied from other places: nearest interpolation, padding, crops."""

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach = call.reaches[0]
        return call.head.copies and isinstance(reach, Sources) and reach.single

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, reach, shape = self.call.head, self.call.reaches[0], self.call.shapes[0]
        assert isinstance(reach, Sources)
        stream, lines = table_lines(g, reach, where)
        rows = g.Reshape(gathered(g, value, shape, stream, lines, float(head.fill)), [-1, shape[1]])
        g.axis = -1
        return spell(g, head, rows), where


class Weighted(Headed):
    """Pixels that are weighted sums of some others: bilinear and bicubic interpolation."""

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach = call.reaches[0]
        return isinstance(call.head, Interpolate) and isinstance(reach, Sources) and reach.orphans is None

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, reach, shape = self.call.head, self.call.reaches[0], self.call.shapes[0]
        assert isinstance(reach, Sources)
        stream, lines = table_lines(g, reach, where)
        _, rows, cols = g.Split(where, axis=1, num_outputs=3, outputs=3)
        weights = head.weights(reach, shape, torch.float32)
        down, across = (
            g.Gather(weight.contiguous(), g.Squeeze(places, [1]), axis=0)
            for weight, places in zip(weights, (rows, cols), strict=True)
        )
        pixels = gathered(g, value, shape, stream, lines, None)
        both = g.Mul(g.Unsqueeze(down, [2, 3]), g.Unsqueeze(across, [1, 3]))
        return g.ReduceSum(g.Mul(pixels, both), [1, 2], keepdims=0), where


def table_lines(g: Scope, reach: Sources, where: str) -> tuple[str, list[str]]:
    """(streams, [rows, columns]) that the pixels `where` have as sources."""
    stream, *places = g.Split(where, axis=1, num_outputs=3, outputs=3)
    tables = (reach.rows, reach.cols)
    return stream, [
        g.Gather(table, g.Squeeze(place, [1]), axis=0) for table, place in zip(tables, places, strict=True)
    ]
