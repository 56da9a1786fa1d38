"""Adaptive and global pools: the result of each line of the map is kept, and only touched lines are read again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.steps import Step
from deltaconvert.ops.base import Operator, pair
from deltaconvert.ops.resample import AdaptivePool2d
from deltaconvert.reach import Reach

# Pixels of a line, if a whole row is pooled to one: short lines mean less to read again, long ones fewer results.
SHORTEST, LONGEST = 8, 32


class Lines(Step):
    """Pools along the width, line by line, then along the height.

    Nothing is accumulated: the result follows from the map as it stands, in a fixed order.
    """

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        precise = inputs[0].values.dtype in (torch.float32, torch.float64)
        return isinstance(operator, AdaptivePool2d) and precise

    def prepare(self) -> None:
        values = self.inputs[0].values
        streams, channels, height, width = values.shape
        self._length, self._kept = width, int(self.edge.values.shape[3])
        if self._kept == 1:
            lengths = (d for d in range(SHORTEST, LONGEST + 1) if width % d == 0)
            self._length = max(lengths, default=width)
        size = streams, height, width // self._length * self._kept, channels
        self._results = torch.zeros(size, dtype=values.dtype)
        self.edge.beside = self._results.nbytes

    def rebuild(self) -> None:
        everything = torch.ones_like(self.inputs[0].mask)
        self._read(self.inputs[0].rows, everything)

    def _update(self, candidates: Tensor, pixels: Tensor | None) -> None:
        source, size = self.inputs[0], self.edge.values.shape[2:]
        self._read(source.rows, source.mask)
        streams = source.mask.flatten(1).any(1).nonzero().view(-1)  # the others are unchanged
        results = self._results.index_select(0, streams).permute(0, 3, 1, 2)
        if self.operator.kind == "avg":
            results = results.double()  # there may be thousands of lines to add up
        new = self._pool(results, pair(size)).to(self._results.dtype).permute(0, 2, 3, 1)
        plane = size.numel()
        places = (streams.view(-1, 1) * plane + torch.arange(plane)).view(-1)
        commit = Commit(self.edge, candidates)
        commit.rows(places, new.reshape(len(places), -1))
        commit.finish(candidates, None, len(places))

    def _read(self, rows: Tensor, mask: Tensor) -> None:
        """Pool the lines with a changed pixel."""
        lines = rows.view(-1, self._length, rows.shape[1])
        touched = listed(mask.view(-1, self._length).any(1))
        some = 2 * len(touched) < len(lines)  # to copy most of the map takes as long as to read all of it
        if some:
            lines = lines.index_select(0, touched)
        found = self._pool(lines.unsqueeze(1).permute(0, 3, 1, 2), (1, self._kept))
        found = found.permute(0, 2, 3, 1).reshape(len(lines), -1)
        kept = self._results.view(-1, found.shape[1])
        if some:
            kept.index_copy_(0, touched, found)
        else:
            kept.copy_(found)

    def _pool(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        # torch's adaptive average would be a mean, whose order depends on where values lie.
        if size == (1, 1):
            box = pair(maps.shape[2:])
            return F.avg_pool2d(maps, box) if self.operator.kind == "avg" else F.max_pool2d(maps, box)
        pool = F.adaptive_avg_pool2d if self.operator.kind == "avg" else F.adaptive_max_pool2d
        return pool(maps, size)
