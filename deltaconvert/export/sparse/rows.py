"""Operators of single pixels."""

from __future__ import annotations

from collections.abc import Sequence

from deltaconvert.export.graph import Body
from deltaconvert.export.ops import spell
from deltaconvert.export.sparse.kind import Call, Kind
from deltaconvert.export.sparse.places import is_pointlike, taken
from deltaconvert.reach import Everything, Pixel, Sources


class Rows(Kind):
    """A list of pixels, each computed from the same pixel of the inputs."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        pointlike = all(
            is_pointlike(reach, shape) for reach, shape in zip(call.reaches, call.shapes, strict=True)
        )
        return (
            pointlike
            and call.operator.position_free
            and isinstance(call.reaches[0], Pixel | Sources | Everything)
        )

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        g.axis = -1
        rows = [
            taken(g, value, reach, shape, where)
            for value, reach, shape in zip(values, self.call.reaches, self.call.shapes, strict=True)
        ]
        new = spell(g, self.call.operator, *rows)
        return self._commit(g, new, where, None, stored, every)
