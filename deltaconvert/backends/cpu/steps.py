"""A step: one delta operator, bound to its edges: which pixels are candidates, and the rows that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.backends.cpu.edges import Edge, listed
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.native.masks import Spread
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import stages_of
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window, overlooks, seen_by

if TYPE_CHECKING:
    from deltaconvert.backends.cpu import Backend


class Step:
    """One operator. As it stands here it computes the whole map as soon as any pixel is a candidate."""

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        """Whether this kind of step can run the operator."""
        return True

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        edge: Edge,
    ):
        self.backend = backend
        self.operator = operator
        self.reaches = reaches
        self.inputs = inputs
        self.edge = edge
        edge.keeps_others = any(map(overlooks, reaches))
        self._origins: dict[int, Tensor] = {}
        self._spreads: dict[int, Spread] = {}
        self.prepare()

    def prepare(self) -> None:
        """What a kind of step needs beside the operator and its edges."""

    def rebuild(self) -> None:
        """Make anew what is kept beside the edges: their values came from elsewhere."""

    def run(self) -> None:
        if not any(source.count for source in self.inputs):
            self.edge.stand_still()
            return
        self._update(*self._candidates())

    def _update(self, candidates: Tensor, pixels: Tensor | None) -> None:
        """Compute the candidates and commit them. pixels: their list, if it is known."""
        self.edge.adopt(self.operator(*(source.values for source in self.inputs)), candidates, self.inputs)

    def _candidates(self) -> tuple[Tensor, Tensor | None]:
        """(mask, list of its pixels if it is known already, or soon made)."""
        mask: Tensor | None = None
        moving = [(place, source) for place, source in enumerate(self.inputs) if source.count]
        for place, source in moving:
            if source.mask is not mask:
                mask = self._spread(place, mask)
        assert mask is not None
        if not loops.FOUND or any(source.count == source.pixel_count for _, source in moving):
            return mask, None
        known = [source.pixels for _, source in moving if source.mask is mask and not self._in_order]
        return mask, known[0] if known else listed(mask)

    @property
    def _in_order(self) -> bool:
        """Lists of candidates have to be: others' lists need not."""
        return False

    def _spread(self, place: int, onto: Tensor | None) -> Tensor:
        """The pixels that input `place` makes candidates, and those of `onto`."""
        reach, mask = seen_by(self.reaches[place]), self.inputs[place].mask
        if loops.FOUND and isinstance(reach, Window) and not reach.transposed and reach.orphans is None:
            if place not in self._spreads:
                self._spreads[place] = Spread(reach)
            return self._spreads[place](mask, onto, self.inputs[place].known)
        mask = reach.spread(mask)
        return mask if onto is None else mask | onto

    def _widths(self) -> list[int | None]:
        """The channels of each input that is a whole map; None for a gate."""
        return [
            None if isinstance(reach, Everything) else source.values.shape[1]
            for reach, source in zip(self.reaches, self.inputs, strict=True)
        ]

    def _taken_beside(self, places: Tensor) -> list[Tensor]:
        """The rows of all inputs but the first."""
        return self._taken(places, 1)

    def _taken(self, places: Tensor, start: int = 0) -> list[Tensor]:
        """The rows of the inputs from `start` on at `places`; of a gate the row of each place's stream."""
        taken = []
        for place, (reach, source) in enumerate(zip(self.reaches, self.inputs, strict=True)):
            if place < start:
                continue
            if isinstance(reach, Pixel):
                taken.append(source.rows.index_select(0, places))
            elif isinstance(reach, Sources):
                taken.append(source.rows.index_select(0, self._copied_from(place).index_select(0, places)))
            elif len(source.rows) == 1:
                taken.append(source.rows)
            else:
                plane = self.edge.pixel_count // len(source.rows)
                taken.append(source.rows.index_select(0, places // plane))
        return taken

    def _copied_from(self, place: int) -> Tensor:
        """int64 (pixels), the row of input `place` that each output pixel is a copy of."""
        if place not in self._origins:
            reach, (streams, _, height, width) = self.reaches[place], self.inputs[place].values.shape
            assert isinstance(reach, Sources)
            first = torch.arange(streams).view(-1, 1, 1) * (height * width)
            rows, cols = reach.rows.clamp(min=0).view(-1, 1), reach.cols.clamp(min=0).view(1, -1)
            self._origins[place] = (first + rows * width + cols).view(-1)
        return self._origins[place]


def is_pointlike(reach: Reach, source: Edge) -> bool:
    """The input can be taken pixel by pixel: it is read there, or it is a gate, or stretched."""
    if isinstance(reach, Sources):
        return reach.single and reach.orphans is None
    return isinstance(reach, Pixel) or (
        isinstance(reach, Everything) and tuple(source.values.shape[2:]) == (1, 1) and reach.size != (1, 1)
    )


def tail_is_free(operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
    """What follows the head can be computed for any pixels apart from the rest."""
    free = all(stage.position_free for stage in stages_of(operator)[1:])
    return free and all(map(is_pointlike, reaches[1:], inputs[1:]))
