"""Two convolutions one after the other; what lies between them is made where it is read, in memory that all share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.backends.cpu import loops
from deltaconvert.backends.cpu.chains import Chain, stage_of
from deltaconvert.backends.cpu.convolutions import Chained
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.masks import Spread
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of, stages_of
from deltaconvert.ops.paired import Paired
from deltaconvert.reach import Reach, Window


class Pairs(Chained):
    """The map between the two lies in scratch memory, each pixel at its place."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        return loops.FOUND and isinstance(head_of(operator), Paired)

    def prepare(self) -> None:
        (head, *tail), source = stages_of(self.operator), self.inputs[0].values
        assert isinstance(head, Paired)
        self._channels = head.window.weight.shape[1]
        between = (source.shape[0], self._channels, *source.shape[2:])
        self._first = self._chain(stages_of(head.first), source.shape, between)
        self._second = self._chain([head.window, *tail], between, self.edge.values.shape)
        (window,) = head.window.reaches([between], self.edge.values.shape)
        assert isinstance(window, Window)
        self._read = Spread(window)  # a window of odd size in its middle is read by the pixels that it reads

    def _chain(self, stages: Sequence[Operator], size: Sequence[int], out_size: Sequence[int]) -> Chain:
        head, *tail = stages
        stage, taken = stage_of(head, tail, [0] * len(tail), [])  # type: ignore[arg-type]
        assert taken == len(tail)
        (window,) = head.reaches([tuple(size)], tuple(out_size))
        return Chain([stage], window, self._scratch)  # type: ignore[arg-type]

    def _compute(self, candidates: Tensor, pixels: Tensor | None, count: int) -> None:
        edge, rows = self.edge, self.inputs[0].rows
        between = self.backend.scratch((edge.pixel_count, self._channels), torch.float32)
        made = None if pixels is None else listed(self._read(candidates))
        self._first.run(rows, made, edge.pixel_count if made is None else len(made), [], between)
        if self._in_place:
            self._renew(self._second, between, [], candidates, pixels, count)
            return
        pixels = listed(candidates) if pixels is None else pixels
        new, commit = edge.rows.new_empty(count, edge.rows.shape[1]), Commit(edge, None)
        self._second.run(between, pixels, count, [], new, by_place=True)
        commit.rows(pixels, new)
        commit.finish(candidates, pixels, count)
