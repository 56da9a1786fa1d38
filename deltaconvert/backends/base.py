"""The interface of a backend: edges hold the maps, steps compute them, and `play` runs a frame.

A backend is a module with a NAME, PASSES (what it does to a plan before its nodes become steps) and a Backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deltaconvert.gate import Watch
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.reach import Reach

# A threshold; (C) has one for each channel, (N, 1 or C, 1, 1) for each stream as well.
Amount = float | Tensor


@dataclass(frozen=True)
class Map:
    """A feature map to keep, N C H W.

    threshold: the largest change that is dropped, for all channels or for each; None if every candidate counts as a
    change.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    threshold: Amount | None = None


class Backend(Protocol):
    """Makes the steps of one program, and plays its frames. takes_bytes: whether `sparsify` can cast bytes to
    floats."""

    takes_bytes: bool

    @property
    def outside(self) -> dict[str, str]:
        """Nodes that do not run as part of a frame's CUDA graph, and why."""

    @property
    def still(self) -> str | None:
        """What a still frame skips of that graph, or why it skips nothing; None if there is no graph."""

    @property
    def buffers(self) -> dict[int, Tensor] | None:
        """The memory that frames are read from, by slot; empty before the first frame; None if there is none."""

    def sparsify(self, kept: Map, watch: Watch | None) -> Any:
        """The edge that is made from dense values. watch: the gate that decides what is new, if there is one."""

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Any],
        kept: Map,
        notes: dict[str, Any],
    ) -> Any:
        """The step of one operator, with its edge in `.edge`. notes: what it found by measuring, for the plan's next
        program."""

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        """Run one frame."""

    def count(self, edges: Sequence[Any]) -> Tensor:
        """Called once a frame. int64 (2, edges, 2): the pixels computed and changed, in this frame and in all so
        far."""


class StepByStep:
    """A Backend whose steps run one after the other: one without CUDA graphs."""

    def __init__(self) -> None:
        self._total: Tensor | int = 0

    @property
    def buffers(self) -> None:
        return None

    @property
    def outside(self) -> dict[str, str]:
        return {}

    @property
    def still(self) -> None:
        return None

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        for step in steps:
            step(frame)

    def with_total(self, counted: Tensor) -> Tensor:
        """(edges, 2) of this frame -> (2, edges, 2): of this frame and of all so far."""
        self._total = self._total + counted
        return torch.stack([counted, self._total])
