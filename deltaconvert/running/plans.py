"""The plans of one network: one for each size of its inputs, made when the size is first met."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, fx

from deltaconvert.lower import Program
from deltaconvert.plan import Plan, plan
from deltaconvert.running.intake import Sizes, sizes_of
from deltaconvert.thresholds import Thresholds
from deltaconvert.tracing import parts


class Plans:
    """thresholds: the rules for all sizes. Percentages become numbers with the first plan, on its frame.

    settled: what programs found by measuring, shared by all plans of the network.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        thresholds: Thresholds,
        backend: ModuleType,
        keep_dense: tuple[str, ...],
        settled: dict[Any, Any],
    ):
        self.graph, self.thresholds, self.backend = graph, thresholds, backend
        self.keep_dense, self.settled = keep_dense, settled
        self._made: dict[Sizes, Plan] = {}

    def __contains__(self, sizes: Sizes) -> bool:
        return sizes in self._made

    def plan(self, frames: Sequence[Tensor]) -> Plan:
        """The plan for inputs of this size. A new size is planned by one run of `frames` through the dense network."""
        sizes = sizes_of(frames)
        if sizes not in self._made:
            with parts.dense_parts(self.graph):
                made = plan(self.graph, frames, self.thresholds, self.keep_dense, self.backend.PASSES)
            if not self._made:
                placed = [pair for node in made.graph.graph.nodes for pair in node.meta.get("placed", ())]
                self.thresholds = self.thresholds.resolved(placed)
            self._made[sizes] = made
        return self._made[sizes]

    def program(self, frames: Sequence[Tensor]) -> Program:
        """A program for inputs of this size, with fresh state."""
        return Program(self.plan(frames), self.backend, self.settled)

    def twin(self, graph: fx.GraphModule, memo: dict[int, Any]) -> Plans:
        """The same plans over copies of their weights. graph: the copy of the network; memo: deepcopy's."""
        twin = Plans(graph, self.thresholds, self.backend, self.keep_dense, dict(self.settled))
        twin._made = {
            sizes: Plan(copy.deepcopy(made.graph, memo), made.streams) for sizes, made in self._made.items()
        }
        return twin
