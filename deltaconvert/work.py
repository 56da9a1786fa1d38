"""Work: the share of a dense frame's multiply-accumulates that a frame took."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.check import sparsify
from deltaconvert.lower import Program


class Work:
    """Of a program of the reference backend, whose masks are what it counts by; islands are computed whole."""

    def __init__(self, program: Program, streams: int):
        """streams: that go apart; of one the images of its batch count together."""
        self._edges, self._streams = program.edges, streams
        nodes = {
            node.name: node.meta for node in program.plan.graph.graph.nodes if node.target is not sparsify
        }
        macs = [nodes.get(name, {}).get("macs", 0) / streams for name in self._edges]
        pixels = [edge.mask[0].numel() for edge in self._edges.values()]
        self._islands = sum(nodes[name].get("macs", 0) for name in program.islands) / streams
        self._all = max(self._islands + sum(macs), 1)
        a_pixel = [count / size for count, size in zip(macs, pixels, strict=True)]
        device = next(iter(self._edges.values())).mask.device
        self._macs = torch.tensor(a_pixel, dtype=torch.float64, device=device)

    def __call__(self) -> Tensor:
        """(streams): of the last frame, on the device: nothing waits for it."""
        done = torch.stack([edge.candidates.sum((1, 2, 3)) for edge in self._edges.values()])
        found = ((done.double() * self._macs[:, None]).sum(0) + self._islands) / self._all
        return found if self._streams > 1 else found.mean(0, keepdim=True)
