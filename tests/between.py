"""A network with any function between two convolutions, and a check that its conversion equals it."""

from __future__ import annotations

import torch
from oracle import assert_close, leaves, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.tracing.twin import twin

SHAPE = (2, 3, 13, 11)


def conv(inner, outer, size=3):
    return nn.Conv2d(inner, outer, size, padding=size // 2)


class Two(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = conv(3, 4), between or nn.ReLU(), conv(4, 2)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def check(network, backend):
    """The conversion equals the network on every frame, and leaves the network as it was."""
    network = network.eval().double()
    frames = scripted_video(SHAPE)[:6]
    dense = twin(network)
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for frame in frames:
        with torch.no_grad():
            expected = dense(frame.clone())
        for ours, theirs in zip(leaves(model(frame)), leaves(expected), strict=True):
            assert_close(ours, theirs)
    return model


def kinds(model):
    return {row.operator: row.kind for row in model.explain().rows if row.macs}
