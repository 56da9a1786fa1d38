"""How much an error in a map changes the network's output, by backpropagation through the dense network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

DRAWS = 2  # of directions at the end, for each frame


def gains(
    graph: fx.GraphModule,
    names: Sequence[str],
    frames: Sequence[Sequence[Tensor]],
    end: Callable[[list[Tensor]], Any],
) -> list[float]:
    """For each node: how much a unit of error in one value of its map adds to what `end` makes of the outputs, as the
    root mean square over values, frames and random directions at the end. NaN for a node without a gradient; an empty
    list if there is no gradient at all.

    Errors are taken to be small and independent. Errors that all pixels share add up to more behind a global pool;
    trials show that.
    """
    squares = dict.fromkeys(names, 0.0)
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        for frame in frames:
            walk = _Walk(graph, names)
            seen = pytree.tree_leaves(end(walk.run(*(x.clone() for x in frame))))
            leaves = [x for x in seen if isinstance(x, Tensor) and x.requires_grad]
            if not leaves:
                return []
            for _ in range(DRAWS):
                directions = [torch.randn(x.shape, generator=draw, device="cpu").to(x) for x in leaves]
                found = torch.autograd.grad(
                    leaves, list(walk.kept.values()), directions, retain_graph=True, allow_unused=True
                )
                for name, slope in zip(walk.kept, found, strict=True):
                    squares[name] += math.nan if slope is None else float(slope.float().square().mean())
    return [math.sqrt(square / (len(frames) * DRAWS)) for square in squares.values()]


class _Walk(fx.Interpreter):
    """Runs the graph and keeps the values of some nodes, each with a gradient."""

    def __init__(self, graph: fx.GraphModule, names: Sequence[str]):
        super().__init__(graph)
        self._names, self.kept = set(names), {}  # type: ignore[var-annotated]

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.name in self._names:
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.kept[node.name] = value
        return value
