"""The reference backend: plain torch on any device. It computes everything and keeps what changed, which defines the
meaning of a delta graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Amount, Map, StepByStep
from deltaconvert.gate import Watch
from deltaconvert.ops.base import Operator
from deltaconvert.reach import Reach

NAME = "reference"
PASSES = ()  # what a backend does to a plan before its nodes become steps
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Edge:
    """One delta: the map as it stands (values, N C H W) and the pixels that changed in this frame (mask, N 1 H W)."""

    is_kept = True  # whether the next frame needs the map; on CUDA some maps are passed on

    def __init__(self, kept: Map):
        self.threshold = kept.threshold
        self.values = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
        self.mask = torch.zeros_like(self.values[:, :1], dtype=torch.bool)
        self.candidates = self.mask
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        fill_unseen(self.values[streams])

    def put(self, stream: int, values: Tensor) -> None:
        """Go on from `values` (C H W)."""
        self.values[stream] = values

    def commit(self, new: Tensor, candidates: Tensor) -> None:
        """Store the candidates that changed, and mark them."""
        changed = candidates
        if self.threshold is not None:
            changed = candidates & differs(new, self.values, self.threshold)
        self.values = torch.where(changed, new, self.values)
        self.mask, self.candidates = changed, candidates

    @property
    def changed(self) -> bool:
        """Whether anything changed; always true on a GPU, where finding out would wait for the device."""
        return True

    def counts(self) -> tuple[Tensor, Tensor]:
        """(computed, changed) pixels of this frame, on the device."""
        return self.candidates.sum(), self.mask.sum()

    def dense(self) -> Tensor:
        return self.values.clone(memory_format=torch.contiguous_format)

    def state_bytes(self) -> int:
        return self.values.nbytes + self.mask.nbytes


def fill_unseen(stored: Tensor) -> None:
    """Fill a part of the state with a NaN that differs from every value of a frame.

    So the next frame is a mask of ones, and a pixel that was not computed would show. The NaN differs from the one that
    arithmetic makes, which a frame may hold. Maps of integers are never compared; they get the least integer.
    """
    if not stored.is_floating_point():
        stored.fill_(False if stored.dtype == torch.bool else torch.iinfo(stored.dtype).min)
        return
    nan = torch.full((1,), float("nan"), dtype=stored.dtype, device=stored.device)
    integer = INTEGER[stored.element_size()]
    stored.view(integer).copy_(nan.view(integer) + 1)


def differs(new: Tensor, stored: Tensor, threshold: Amount) -> Tensor:
    """bool (N, 1, H, W): pixels in which some channel moved by more than `threshold`; NaN differs from everything.

    At threshold 0 bits are compared: -0.0 after 0.0 is a change, and the same NaN again is none.
    """
    if isinstance(threshold, Tensor):
        threshold = threshold.view(-1, 1, 1) if threshold.dim() == 1 else threshold
    elif threshold == 0:
        integer = INTEGER[new.element_size()]
        return (new.contiguous().view(integer) != stored.contiguous().view(integer)).any(1, keepdim=True)
    return ~((new - stored).abs() <= threshold).all(1, keepdim=True)


def nonfinite_of(new: Tensor, mask: Tensor) -> Tensor:
    """int64 (N): of the pixels in `mask` (N, 1, H, W) those that have NaN or infinity in a channel of `new`."""
    return (mask & ~new.isfinite().all(1, keepdim=True)).sum((1, 2, 3))


class Backend(StepByStep):
    takes_bytes = False

    def __init__(self, settled: dict[Any, Any] | None = None) -> None:
        super().__init__()

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
        return Step(operator, reaches, inputs, Edge(kept))

    def count(self, edges: Sequence[Edge]) -> Tensor:
        return self.with_total(torch.stack([torch.stack(edge.counts()) for edge in edges]))


class FrameEdge(Edge):
    """A delta that is made from dense values. watch: the gate that decides what is new, if there is one.

    nonfinite: int64 (N), of each stream the pixels that were stored with NaN or infinity so far; a reset keeps it.
    """

    def __init__(self, kept: Map, watch: Watch | None):
        self.watch = watch
        super().__init__(kept)
        self.nonfinite = torch.zeros(kept.shape[0], dtype=torch.int64, device=kept.device)

    def sleep(self, streams: Collection[int]) -> None:
        """The images of these streams are those of the frame before; without a gate they are compared anyway."""
        if self.watch is not None:
            self.watch.sleep(streams)

    def run(self, frame: Tensor) -> None:
        every = torch.ones_like(self.mask)
        if self.watch is None:
            self.commit(frame, every)
        else:
            frame, self.mask = self.watch.look(frame, self.values)
            self.values, self.candidates = torch.where(self.mask, frame, self.values), every
        self.nonfinite.add_(nonfinite_of(frame, self.mask))


class Step:
    """One operator: spread the masks, compute, commit."""

    def __init__(self, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge], edge: Edge):
        self.operator, self.reaches, self.inputs, self.edge = operator, reaches, inputs, edge

    def rebuild(self) -> None:
        """Compute again what is kept beside the edges, after their values were replaced."""

    def run(self) -> None:
        candidates = self.reaches[0].spread(self.inputs[0].mask)
        for reach, source in zip(self.reaches[1:], self.inputs[1:], strict=True):
            candidates = candidates | reach.spread(source.mask)
        self.edge.commit(self.operator(*(source.values for source in self.inputs)), candidates)
