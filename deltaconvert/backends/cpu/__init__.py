"""The cpu backend: its cost follows the changed pixels.

State is N H W C in memory, so that a map is also a matrix of rows, one a pixel: a list of pixels is a batch of 1x1
images, a list of tiles with their halo a batch of small ones, and the operator itself computes either. Lists are cut
into chunks of a few fixed sizes: oneDNN prepares itself once for each, scratch memory stays in the cache, and the bits
of a pixel cannot depend on how many others changed.

At plan time each step runs both ways on random maps (see Sparse.settle): by pixels, and by the dense operator. They may
replace each other only if they agree to the last bit. The run also tells from which share of candidates on the dense
operator is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.backends.base import Map, StepByStep
from deltaconvert.backends.cpu.averages import Averages
from deltaconvert.backends.cpu.chains import can_chain
from deltaconvert.backends.cpu.convolutions import Convolutions
from deltaconvert.backends.cpu.copies import Copies
from deltaconvert.backends.cpu.edges import Edge
from deltaconvert.backends.cpu.frames import FrameEdge
from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.backends.cpu.lines import Lines
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.packed import can_pack
from deltaconvert.backends.cpu.pairs import Pairs
from deltaconvert.backends.cpu.parts import Parts
from deltaconvert.backends.cpu.residuals import Residuals
from deltaconvert.backends.cpu.rows import Rows
from deltaconvert.backends.cpu.shuffles import Shuffles
from deltaconvert.backends.cpu.sparse import Sparse
from deltaconvert.backends.cpu.steps import Step
from deltaconvert.backends.cpu.tiles import Tiles
from deltaconvert.backends.cpu.weighted import Weighted
from deltaconvert.gate import Watch
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.ops.paired import Paired
from deltaconvert.passes.join_pairs import join_pairs
from deltaconvert.passes.join_pixels import join_pixels
from deltaconvert.passes.join_residuals import join_residuals
from deltaconvert.reach import Reach

NAME = "cpu"


def _join_residuals(gm: fx.GraphModule) -> fx.GraphModule:
    return join_residuals(gm, can_chain)


PASSES = (_join_residuals, join_pixels, join_pairs) if loops.FOUND else (join_pixels,)
KINDS: tuple[type[Step], ...] = (
    Parts,
    Residuals,
    Pairs,
    Convolutions,
    Rows,
    Tiles,
    Averages,
    Copies,
    Shuffles,
    Weighted,
    Lines,
    Step,
)  # the first that fits an operator runs it


Settled = dict[Any, dict[str, Any]]  # description of a step -> what it found by measuring


def why_slow() -> str | None:
    """What is missing on this machine for speed; None if nothing is."""
    if loops.FOUND:
        return None
    return (
        "numba is not installed, which compiles the convolutions of the CPU: without it converting saves little time. "
        'pip install "deltaconvert[cpu]"'
    )


class Backend(StepByStep):
    """Makes the steps of one program, which share scratch memory, and tables of tiles where their geometry is equal."""

    takes_bytes = True

    def __init__(self, settled: Settled | None = None) -> None:
        super().__init__()
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._every = torch.arange(0)
        self._grid = lru_cache(maxsize=None)(Grid)
        self.orders: dict[Any, bytes] = {}  # see PackedConv
        self._settled: Settled = {} if settled is None else settled

    def sparsify(self, kept: Map, watch: Watch | None) -> FrameEdge:
        return FrameEdge(kept, watch)

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        kept: Map,
        notes: dict[str, Any],
    ) -> Step:
        kind = self._kind(operator, reaches, inputs)
        step = kind(self, operator, reaches, inputs, Edge(kept))
        if isinstance(step, Sparse) and step.sizes:
            if not notes:
                notes.update(self._tried(step))
            step.settle(notes)
        return step

    def _tried(self, step: Sparse) -> dict[str, Any]:
        """Let a step settle, on as few streams as suffice; equal steps only once."""
        shapes = [(step.together, *edge.values.shape[1:]) for edge in (*step.inputs, step.edge)]
        stores_all = step.edge.threshold is None and not step.edge.keeps_others
        key = (type(step), _outline(step.operator), *shapes, step.edge.values.dtype, stores_all)
        if key not in self._settled:
            notes: dict[str, Any] = {}
            step.of_few_streams().settle(notes)
            self._settled[key] = notes  # assigned when complete, because other threads may read it
        return self._settled[key]

    def _kind(self, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> type[Step]:
        convolves = any(isinstance(stage, Conv2d | ConvTranspose2d) for stage in stages_of(operator))
        if convolves and not can_pack(inputs[0].values):
            return Step  # outside of oneDNN the order of a sum depends on the pixels' addresses
        return next(kind for kind in KINDS if kind.fits(operator, reaches, inputs))

    def count(self, edges: Sequence[Any]) -> Tensor:
        return self.with_total(torch.tensor([edge.counts() for edge in edges], dtype=torch.int64))

    def scratch(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory that all steps share: valid until the next call."""
        size = math.prod(shape)
        if dtype not in self._scratch or self._scratch[dtype].numel() < size:
            self._scratch[dtype] = torch.empty(size, dtype=dtype)
        return self._scratch[dtype][:size].view(tuple(shape))

    def every(self, count: int) -> Tensor:
        """int64, the list of all pixels of a map with so many. Not to be written to."""
        if len(self._every) < count:
            self._every = torch.arange(count)
        return self._every[:count]

    def grid(self, *geometry: Any) -> Grid:
        return self._grid(*geometry)


def _outline(operator: Any) -> Any:
    """A key for an operator without the values of its weights, which do not affect its speed or order of summation."""
    if isinstance(operator, Fused):
        return tuple(map(_outline, operator.stages)), tuple(operator.counts), tuple(operator.slots)
    if isinstance(operator, Paired):
        return Paired, _outline(operator.first), _outline(operator.window)
    settings = operator.settings().items()
    return type(operator), tuple(
        (k, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for k, v in settings
    )
