"""What every backend gives: edges that hold the maps, steps that renew them, and the play of a frame.

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

    threshold: None where every candidate counts as a change; else the largest change that is dropped, of all channels
    or of each.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    threshold: Amount | None = None


class Backend(Protocol):
    """Makes the steps of one program. takes_bytes: its deltas read bytes where their values are floats."""

    takes_bytes: bool

    @property
    def outside(self) -> dict[str, str]:
        """Nodes that do not run as part of a frame's CUDA graph, and why."""

    @property
    def still(self) -> str | None:
        """What a still frame skips of that graph, or why nothing; None where there is none."""

    @property
    def buffers(self) -> dict[int, Tensor] | None:
        """The memory that every frame is read from, by slots; empty before the first one; None where there is none."""

    def sparsify(self, kept: Map, watch: Watch | None) -> Any:
        """The edge that dense values come in by. watch: the gate that decides what is new, if there is one."""

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Any],
        kept: Map,
        notes: dict[str, Any],
    ) -> Any:
        """The step of one operator, its edge at `.edge`. notes: what it settled, kept for the plan's next program."""

    def play(self, steps: Sequence[Callable[[Any], None]], frame: Any) -> None:
        """Run one frame."""

    def count(self, edges: Sequence[Any]) -> Tensor:
        """Once a frame. int64 (2, edges, 2): of this frame and of all so far, the pixels computed and changed."""


class StepByStep:
    """The part of a Backend that is the same wherever a frame is no CUDA graph: its steps run one after the other."""

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
