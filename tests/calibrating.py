"""For tests of calibration: a network, a clip, and trials whose outcomes follow a rule."""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from deltaconvert.calibration.setting import Outcome


def network() -> nn.Module:
    torch.manual_seed(7)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    ]
    return nn.Sequential(*layers).eval()


def clip(frames: int = 6, seed: int = 0) -> list[Tensor]:
    """A box with fresh texture that moves over a still scene, under noise."""
    draw = torch.Generator().manual_seed(seed)
    scene = torch.rand(1, 3, 32, 48, generator=draw)
    out = []
    for t in range(frames):
        frame = scene + torch.randn(scene.shape, generator=draw) * 0.01
        frame[:, :, 8:18, 4 + 3 * t : 14 + 3 * t] = torch.rand(1, 3, 10, 10, generator=draw)
        out.append(frame)
    return out


class Made:
    """Trials without a network: their outcomes follow a rule."""

    at_once = 8
    narrowing: frozenset[int] = frozenset()

    def __init__(self, rule, layers):
        self.rule = rule
        self.sites = [SimpleNamespace(kind="input"), *[SimpleNamespace(kind="activation")] * layers]

    def alike(self):
        return (1.0,) * len(self.sites)

    def done_by(self, until, settings):
        if time.monotonic() > until:
            return {}
        outcomes = [Outcome(loss, loss, work) for loss, work in map(self.rule, settings)]
        return dict(zip(settings, outcomes, strict=True))
