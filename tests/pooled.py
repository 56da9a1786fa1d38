"""A network for pools of streams, and its frames."""

from __future__ import annotations

import torch
from oracle import Call, scripted_video
from torch import nn

import deltaconvert

SHAPE = (1, 3, 9, 11)


def network(**parts):
    torch.manual_seed(0)
    return Call(
        lambda m, x: (m.norm(m.conv(x)).relu(), m.head(m.pool(x).flatten(1))),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.GroupNorm(2, 4),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Linear(3, 5),
        **parts,
    ).eval()


def converted(backend, model=None, **options):
    return deltaconvert.convert(model or network(), video()[0], backend=backend, **options)


def video(seed=0):
    return scripted_video(SHAPE, torch.float32, seed)


def only(results, stream):
    assert list(results) == [stream] and results[stream].error is None
    return results[stream].output
