"""Networks of blocks whose branches or halves a GPU computes in joined launches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.ops.fused import head_of


def depthwise(channels: int, kernel: int = 5, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=channels)


class Branches(nn.Module):
    """Three branches on one map: of one, two and three convolutions, then 1x1 ones."""

    def __init__(self, kernel: int = 5, width: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, padding=1)
        self.chains = nn.ModuleList(
            nn.ModuleList(depthwise(width, kernel) for _ in range(length)) for length in (1, 2, 3)
        )
        self.ends = nn.ModuleList(nn.Conv2d(width, outputs, 1) for outputs in (1, 4, 9))

    def forward(self, x):
        x = self.stem(x).relu()
        outputs = []
        for chain, end in zip(self.chains, self.ends, strict=True):
            y = x
            for layer in chain:
                y = layer(y).relu()
            outputs.append(end(y))
        return outputs


class Shuffled(nn.Module):
    """Blocks of a ShuffleNet: with a stride both halves are convolved, without a stride one half is passed on.

    turned: channels are shuffled after a block and then split in halves; otherwise they are shuffled by the split.
    """

    def __init__(self, act=torch.relu, turned: bool = False):
        super().__init__()
        self.act, self.turned = act, turned
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.beside = nn.Sequential(self.depthwise(16, 2), nn.Conv2d(16, 16, 1))
        self.first = nn.ModuleList([nn.Conv2d(16, 16, 1), self.depthwise(16, 2), nn.Conv2d(16, 16, 1)])
        self.second = nn.ModuleList([nn.Conv2d(16, 16, 1), self.depthwise(16, 1), nn.Conv2d(16, 16, 1)])

    @staticmethod
    def depthwise(channels: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels)

    def branch(self, parts, x):
        return self.act(parts[2](parts[1](self.act(parts[0](x)))))

    def forward(self, x):
        x = self.act(self.stem(x))
        x = torch.cat([self.act(self.beside(x)), self.branch(self.first, x)], 1)
        if self.turned:
            x = F.channel_shuffle(x, 2)
            passed, convolved = x[:, :16], x[:, 16:]
        else:
            passed, convolved = x[:, 0::2], x[:, 1::2]
        return torch.cat([passed, self.branch(self.second, convolved)], 1)


def steps_of(model: deltaconvert.DeltaModel) -> list[str]:
    return [type(head_of(step.operator)).__name__ for step in model._program.operators]


STEPS = ["Conv2d"] * 4 + ["ConvSum"] + ["Conv2d"] * 2 + ["ConvSum"]
