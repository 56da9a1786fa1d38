"""Work: the share of a dense frame's multiply-accumulates, or of other costs, that a frame took."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from deltaconvert.lower import Program
from deltaconvert.nodes import sparsify


class Work:
    """Counts the work of a program of the reference backend by its masks; islands count whole."""

    def __init__(self, program: Program, streams: int, cost: Callable[[fx.Node], float] | None = None):
        """streams: counted separately; with one, all images of the batch count together. cost: of a node's whole
        map."""
        self._edges, self._streams = program.edges, streams
        nodes = [node for node in program.plan.graph.graph.nodes if node.target is not sparsify]
        costs = {node.name: (cost or _macs)(node) / streams for node in nodes}
        own = [costs.get(name, 0.0) for name in self._edges]
        pixels = [edge.mask[0].numel() for edge in self._edges.values()]
        self._islands = sum(costs[name] for name in program.islands)
        self._all = max(self._islands + sum(own), 1)
        a_pixel = [count / size for count, size in zip(own, pixels, strict=True)]
        device = next(iter(self._edges.values())).mask.device
        self._costs = torch.tensor(a_pixel, dtype=torch.float64, device=device)

    def __call__(self) -> Tensor:
        """(streams): the work of the last frame, left on the device."""
        done = torch.stack([edge.candidates.sum((1, 2, 3)) for edge in self._edges.values()])
        found = ((done.double() * self._costs[:, None]).sum(0) + self._islands) / self._all
        return found if self._streams > 1 else found.mean(0, keepdim=True)


def _macs(node: fx.Node) -> float:
    return float(node.meta.get("macs", 0))
