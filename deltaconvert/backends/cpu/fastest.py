"""Which way a chain of convolutions is computed. Its geometry alone decides: bits do not depend on a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from deltaconvert.backends.cpu.chains import Chain, Stage
from deltaconvert.backends.cpu.winograd import Winograd, suits
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Window

FEWEST_CHANNELS = 16  # that fill vectors


def fastest(stages: Sequence[Stage], window: Window | None, scratch: Callable[[int], int]) -> Chain:
    """A chain of these stages."""
    first, *others = stages
    if window is not None and suits(first, window):
        return Winograd(stages, window, scratch)
    if window is not None and len(first.conv.weight) == 1 and first.conv.weight.shape[1] >= FEWEST_CHANNELS:
        stages = [*_by_channel(first), *others]
    return Chain(stages, window, scratch)


def _by_channel(stage: Stage) -> list[Stage]:
    """A window to one channel: each channel by itself, and their sum. A panel of weights would have one channel in use.

    64 channels and 3x3 on a Zen 3 core: 130 cycles a pixel, 380 in a panel.
    """
    conv, depth = stage.conv, stage.conv.weight.shape[1]
    own = Conv2d(
        conv.weight.transpose(0, 1).contiguous(), None, conv.stride, conv.padding, conv.dilation, depth
    )
    total = Conv2d(torch.ones(1, depth, 1, 1), conv.bias, (1, 1), (0, 0), (1, 1), 1)
    return [Stage(own, False), replace(stage, conv=total)]
