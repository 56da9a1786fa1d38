"""Operators without a sparse way, and those that have one pixel."""

from __future__ import annotations

from collections.abc import Sequence

from deltaconvert.export.graph import Body, Scope
from deltaconvert.export.ops import spell
from deltaconvert.export.sparse.kind import Call, Kind
from deltaconvert.export.sparse.places import any_of, moves
from deltaconvert.ops.resample import AdaptivePool2d


class Masked(Kind):
    """The whole map, of which the candidates are kept; nothing where there are none."""

    listed = False

    @classmethod
    def fits(cls, call: Call) -> bool:
        return True

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        call = self.call
        then, otherwise = g.branch(), g.branch()
        new = self._new(then, values)
        changed = then.Transpose(then.Greater(candidates, 0.5), perm=[0, 2, 3, 1])
        if call.threshold is not None:
            moved = then.Or(moves(then, new, stored, call.threshold, -1), then.Reshape(every, [-1, 1, 1, 1]))
            changed = then.And(changed, moved)
        n, _, height, width = call.out
        then.result(then.Where(changed, new, stored))
        otherwise.result(otherwise.Identity(stored))
        if call.threshold is None:
            return [g.choose(any_of(g, candidates), then, otherwise)]
        then.result(then.Reshape(then.Cast(changed, to=1), [n, 1, height, width]))
        otherwise.result(otherwise.Identity(candidates))
        return list(g.choose(any_of(g, candidates), then, otherwise, 2))

    def _new(self, g: Scope, values: Sequence[str]) -> str:
        g.shape, g.axis = self.call.shapes[0], 1
        maps = [g.Transpose(value, perm=[0, 3, 1, 2]) for value in values]
        return g.Transpose(spell(g, self.call.operator, *maps), perm=[0, 2, 3, 1])


class OnePixel(Masked):
    """What reads a whole map for one pixel: global pools, the layers behind flatten, statistics."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        return isinstance(call.operator, AdaptivePool2d) and call.out[2:] == (1, 1)

    def _new(self, g: Scope, values: Sequence[str]) -> str:
        g.shape, g.axis = self.call.shapes[0], -1
        new = spell(g, self.call.operator, *values)
        g.axis = 1
        return new
