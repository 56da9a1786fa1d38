"""What a body is written from, and what every way of writing one is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltaconvert.backends.reference import Amount
from deltaconvert.export.graph import Body, Scope
from deltaconvert.export.ops import spell_tail
from deltaconvert.export.sparse.places import is_pointlike, moves, taken
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.fused import Fused, head_of, stages_of
from deltaconvert.reach import Reach


@dataclass
class Call:
    """One delta node: its operator, and for each input reach and shape N C H W."""

    operator: Operator
    reaches: Sequence[Reach]
    shapes: Sequence[Shape]
    out: Shape
    threshold: Amount | None

    @property
    def head_inputs(self) -> int:
        operator = self.operator
        return operator.head_inputs if isinstance(operator, Fused) else len(self.shapes)

    @property
    def head(self) -> Any:
        return head_of(self.operator)


class Kind(ABC):
    """A way to compute. `tile`: None where it takes a list of pixels, else the tiles that it takes a list of."""

    tile: tuple[int, int] | None = None
    listed = True  # whether it takes a list at all

    def __init__(self, call: Call):
        self.call = call

    @classmethod
    @abstractmethod
    def fits(cls, call: Call) -> bool:
        """Whether the operator can be computed in this way."""

    @abstractmethod
    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        """[stored map], and the mask of what changed where a threshold stands."""

    def _commit(
        self, g: Scope, new: str, places: str, candidates: str | None, stored: str, every: str
    ) -> list[str]:
        """Store computed pixels (..., C) at places (..., 3); with a threshold those that moved, and what they are."""
        threshold, (n, channels, height, width) = self.call.threshold, self.call.out
        if threshold is None:
            return [g.ScatterND(stored, places, new)]
        if candidates is not None:
            new, places = g.Reshape(new, [-1, channels]), g.Reshape(places, [-1, 3])
        moved = g.Gather(moves(g, new, g.GatherND(stored, places), threshold, -1), 0, axis=-1)
        moved = g.Or(moved, g.GatherND(every, g.Slice(places, [0], [1], [1])))
        if candidates is not None:
            whole = g.Reshape(candidates, [n, height, width])
            moved = g.And(moved, g.Greater(g.GatherND(whole, places), 0.5))
        # Compress would say it shorter, but fails on CUDA where the list is empty (onnxruntime 1.31).
        kept = g.Squeeze(g.NonZero(moved), [0])
        places, new = g.Gather(places, kept, axis=0), g.Gather(new, kept, axis=0)
        ones = g.Expand(1.0, g.Slice(g.Shape(places), [0], [1]))
        mask = g.ScatterND(torch.zeros(n, height, width), places, ones)
        return [g.ScatterND(stored, places, new), g.Reshape(mask, [n, 1, height, width])]


class Headed(Kind):
    """A head that gathers for itself, and a tail of functions of pixels."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        rest = zip(call.reaches[1:], call.shapes[1:], strict=True)
        tail = stages_of(call.operator)[1:]
        free = all(stage.position_free for stage in tail) and all(is_pointlike(*each) for each in rest)
        return free and call.head_inputs == 1 and cls._fits_head(call)

    @classmethod
    @abstractmethod
    def _fits_head(cls, call: Call) -> bool:
        """Whether the head can; the tail can."""

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        call = self.call
        new, places = self._head(g, values[0], where)
        g.axis = -1
        others = [
            taken(g, value, reach, shape, places)
            for value, reach, shape in zip(values[1:], call.reaches[1:], call.shapes[1:], strict=True)
        ]
        new = spell_tail(g, call.operator, new, others)
        return self._commit(g, new, places, candidates if self.tile else None, stored, every)

    @abstractmethod
    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        """(computed pixels, their places)."""
