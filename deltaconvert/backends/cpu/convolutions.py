"""Convolutions that compute exactly the candidates, read from the map in place and stored directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from deltaconvert.backends.cpu.chains import Chain, Stage, can_chain, is_depthwise, stage_of
from deltaconvert.backends.cpu.chunks import CHUNK_BYTES
from deltaconvert.backends.cpu.edges import Commit, Edge, listed
from deltaconvert.backends.cpu.elementwise import Elementwise
from deltaconvert.backends.cpu.fastest import fastest
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.steps import Step, tail_is_free
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.reach import Everything, Pixel, Reach, Window


class Chained(Step):
    """A step that computes by chains: the whole map is just another list of pixels, with the same bits."""

    def run(self) -> None:
        if not any(source.count for source in self.inputs):
            self.edge.stand_still()
        elif any(self._is_full(place) for place in range(len(self.inputs))):
            self._compute(torch.ones_like(self.edge.mask), None, self.edge.pixel_count)
        else:
            candidates, pixels = self._candidates()
            pixels = listed(candidates) if pixels is None else pixels
            if len(pixels):
                self._compute(candidates, pixels, len(pixels))
            else:  # a stride may skip everything that changed
                self.edge.stand_still()

    def _compute(self, candidates: Tensor, pixels: Tensor | None, count: int) -> None:
        """Compute a number of candidates and commit them. pixels: their list; None for all."""
        raise NotImplementedError

    def _is_full(self, place: int) -> bool:
        """Whether all pixels of an input changed, so that all of the output can have changed."""
        source = self.inputs[place]
        return source.count == source.pixel_count and not isinstance(self.reaches[place], Everything)

    @property
    def _in_place(self) -> bool:
        """Whether the chain itself can compare rows as it stores them, or nothing has to be compared."""
        return self.edge.threshold is None or self.edge.limits is not None

    def _renew(
        self, compute: Callable[..., None], candidates: Tensor, pixels: Tensor | None, count: int
    ) -> None:
        """As _compute, by a function compute(limits=..., marks=...) that stores the edge's rows as Chain.run does."""
        edge = self.edge
        if edge.limits is None:
            compute(limits=None, marks=None)
            edge.mark(candidates, count, count, pixels)
            return
        marks = torch.zeros_like(edge.mask)
        compute(limits=edge.limits, marks=marks)
        changed = listed(marks)
        edge.mark(marks, count, len(changed), changed)

    def _scratch(self, size: int) -> int:
        return self.backend.scratch((size,), torch.uint8).data_ptr()


class Convolutions(Chained):
    """A convolution with its tail. The same code computes any list of pixels, or all, with the same bits.

    Operators of the tail other than convolutions, additions of maps and simple activations are done by torch on chunks
    of rows.
    """

    @classmethod
    def fits(cls, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> bool:
        first, convs = reaches[0], [stage for stage in stages_of(operator) if isinstance(stage, Conv2d)]
        reads = isinstance(first, Pixel) or (isinstance(first, Window) and not first.transposed)
        return (
            loops.FOUND
            and reads
            and isinstance(stages_of(operator)[0], Conv2d)
            and (convs[0].groups == 1 or (is_depthwise(convs[0]) and isinstance(first, Window)))
            and all(conv.groups == 1 for conv in convs[1:])
            and tail_is_free(operator, reaches, inputs)
            and can_chain(convs, inputs[0].values.dtype)
        )

    def prepare(self) -> None:
        self._links = self._linked()
        self._direct = (
            self._in_place
            and len(self._links) == 1
            and all(isinstance(reach, Pixel) for reach in self.reaches[1:])
        )
        rows = [source.rows.shape[1] for source in (self.edge, *self.inputs)]
        self._chunk = max(64, CHUNK_BYTES // (4 * max(rows)))

    def _linked(self) -> list[tuple[Chain | Elementwise, int]]:
        """The links that compute the operator's stages, and how many further inputs each takes. Consecutive
        convolutions are one chain, with those stages behind them that a chain can do."""
        stages, widths = self._stages(), self._widths()
        fused = isinstance(self.operator, Fused)
        counts, slots = ([0, *self.operator.counts], [0, *self.operator.slots]) if fused else ([0], [0])
        links: list[tuple[Chain | Elementwise, int]] = []
        chain: list[Stage] = []
        at, place = 0, 1  # the next stage, and the next input
        while at < len(stages):
            stage, more, takes = stages[at], 1, counts[at]
            if isinstance(stage, Conv2d):
                after = slice(at + 1, None)
                own, taken = stage_of(stage, stages[after], counts[after], widths[place:], slots[after])
                chain.append(own)
                more, takes = 1 + taken, int(own.adds)
            else:
                links += self._closed(chain, first=not links)
                links.append((Elementwise(stage, takes, slots[at]), takes))
                chain = []
            at, place = at + more, place + takes
        return links + self._closed(chain, first=not links)

    def _closed(self, chain: Sequence[Stage], *, first: bool) -> list[tuple[Chain | Elementwise, int]]:
        """Close the chain that was begun, if there is one. first: whether it reads the input."""
        if not chain:
            return []
        made = self._first_chain(chain) if first else fastest(chain, None, self._scratch)
        return [(made, sum(stage.adds for stage in chain))]

    @property
    def _in_order(self) -> bool:
        return self._links[0][0].in_order

    def _stages(self) -> list[Operator]:
        return stages_of(self.operator)

    def _first_chain(self, stages: Sequence[Stage]) -> Chain:
        return fastest(stages, self._window, self._scratch)

    @property
    def _window(self) -> Window | None:
        """The window of the first stage; None if it reads single pixels."""
        return self.reaches[0] if isinstance(self.reaches[0], Window) else None

    def _compute(self, candidates: Tensor, pixels: Tensor | None, count: int) -> None:
        if self._direct:
            (chain, _), adds = self._links[0], [source.rows for source in self.inputs[1:]]
            assert isinstance(chain, Chain)
            compute = partial(chain.run, self.inputs[0].rows, pixels, count, adds, self.edge.rows)
            self._renew(compute, candidates, pixels, count)
            return
        pixels = listed(candidates) if pixels is None else pixels
        commit = Commit(self.edge, None)
        for chunk in pixels.split(self._chunk):
            commit.rows(chunk, self._computed(chunk))
        commit.finish(candidates, pixels, count)

    def _computed(self, pixels: Tensor) -> Tensor:
        """(n, C'), in memory of its own."""
        value, others = self.inputs[0].rows, self._taken_beside(pixels)
        read: Tensor | None = pixels
        for link, takes in self._links:
            beside, others = others[:takes], others[takes:]
            if isinstance(link, Chain):
                source, value = value, value.new_empty(len(pixels), link.channels)
                link.run(source, read, len(pixels), beside, value, by_place=True)
                read = None  # what comes next reads these rows
            else:
                value = link.rows(value, beside)
        return value
