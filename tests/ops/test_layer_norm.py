"""ops/layer_norm.py, with passes/follow_layouts.py in front of it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, check_operator, dense, scripted_video
from torch import nn

import deltaconvert

A = (2, 6, 4, 5)
last, first = (0, 2, 3, 1), (0, 3, 1, 2)
NORMS = {
    "N H W C": lambda m, x: m.norm(x.permute(last)).permute(first),
    "a function": lambda m, x: F.layer_norm(x.permute(last), (6,)).permute(first),
    "a function with weights": lambda m, x: F.layer_norm(
        x.permute(last), m.norm.normalized_shape, m.norm.weight, m.norm.bias, m.norm.eps
    ).permute(first),
    "tokens": lambda m, x: m.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
    "weight alone": lambda m, x: m.unbiased(x.permute(last)).permute(first),
    "pooled": lambda m, x: m.norm(x.mean((2, 3), keepdim=True).flatten(1)).view(2, 6, 1, 1),
    "channels in another order": lambda m, x: m.norm(
        x.view(2, 2, 3, 4, 5).permute(0, 3, 4, 2, 1).flatten(3)
    ).permute(first),
    "rms": lambda m, x: m.rms(x.permute(last)).permute(first),
    "a function rms": lambda m, x: (
        F.rms_norm(x.flatten(2).transpose(1, 2), (6,), m.weight).transpose(1, 2).reshape(x.shape)
    ),
    "by hand": lambda m, x: by_hand(m, x.permute(last)).permute(first),
}


def by_hand(m, x):
    """Scale and shift as ConvNeXt writes them, on the last dimension."""
    return m.weight * m.norm(x) + m.bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NORMS)
def test_over_channels(backend, name, dtype):
    module = Call(
        NORMS[name],
        norm=nn.LayerNorm(6),
        unbiased=nn.LayerNorm(6, bias=False, eps=1e-3),
        rms=nn.RMSNorm(6, eps=1e-3),
        weight=torch.randn(6),
        bias=torch.randn(6),
    )
    check_operator(module, A, dtype=dtype, threshold=0.1, backend=backend)


class Block(nn.Module):
    """ConvNeXt's block: everything between the permutes works on N H W C."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(9, 11), (1, 3), (30, 26)])
def test_convnext_block(backend, size):
    check_operator(Block(8), (2, 8, *size), dtype=torch.float32, threshold=0.1, backend=backend)


def test_written_out_over_channels_stays_right(backend):
    """ConvNeXt's norm of N C H W, from means over dimension 1."""

    def run(m, x):
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return m.weight[:, None, None] * y + m.bias[:, None, None]

    network, video = Call(run, weight=torch.randn(6), bias=torch.randn(6)).double(), scripted_video(A)
    model = deltaconvert.convert(network.eval(), video[0], backend=backend)
    for frame in video:
        assert_close(model(frame), dense(network, [frame]))


DENSE = {
    "a whole map": (lambda m, x: m.whole(x), "normalises over rows or whole maps"),
    "along the width": (lambda m, x: m.width(x), "normalises over rows or whole maps"),
    "rows and channels": (lambda m, x: m.rows(x.permute(last)), "normalises over rows or whole maps"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    parts = {"whole": nn.LayerNorm((6, 4, 5)), "width": nn.LayerNorm(5), "rows": nn.LayerNorm((5, 6))}
    module = Call(function, norm=nn.LayerNorm(6), **parts)
    check_operator(module, A, backend=backend, expect="dense", reason=reason)
