"""passes/join_elementwise.py, on the plans of backends/cuda. Needs no GPU."""

from __future__ import annotations

import pytest
import torch
from oracle import Call
from torch import nn

import deltaconvert
from deltaconvert.passes.join_elementwise import join_elementwise


def joined(threshold, forward, **parts):
    network, frame = Call(forward, **parts).eval(), torch.rand(1, 3, 9, 8)
    model = deltaconvert.convert(network, frame, threshold=threshold, backend="reference")
    graph = join_elementwise(model._program.plan.graph)
    return graph, network(frame), graph(frame)[0]


@pytest.mark.parametrize("threshold, nodes", [(0.0, 1), ({"activation": 0.1}, 2)])
def test_what_stands_behind_an_activation(threshold, nodes):
    """before: sigmoid(conv(x)) - 0.5, two nodes; after: one, unless a threshold stands between them."""
    graph, dense, ours = joined(
        threshold, lambda self, x: self.conv(x).sigmoid() - 0.5, conv=nn.Conv2d(3, 4, 3, padding=1)
    )
    assert len([node for node in graph.graph.nodes if node.meta.get("delta")]) == nodes
    assert torch.allclose(dense, ours)


def test_what_others_read_stays():
    def forward(self, x):
        gate = self.conv(x).sigmoid()
        return gate - 0.5, gate * 2

    graph, _, _ = joined(0.0, forward, conv=nn.Conv2d(3, 4, 3, padding=1))
    assert len([node for node in graph.graph.nodes if node.meta.get("delta")]) == 3


def test_an_operand_of_a_tail_does_not_join():
    """A map that is multiplied with a sum does not join the sum as its first stage."""
    graph, dense, ours = joined(
        0.0,
        lambda self, x: (self.a(x) + x) * self.b(x).relu(),
        a=nn.Conv2d(3, 3, 3, padding=1),
        b=nn.Conv2d(3, 3, 1),
    )
    assert torch.allclose(dense, ours)
    assert len([node for node in graph.graph.nodes if node.meta.get("delta")]) == 2
