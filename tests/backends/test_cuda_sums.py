"""Convolutions that are added become one sum over both maps (backends/cuda/sums.py). Needs no GPU."""

from __future__ import annotations

import pytest
import torch
from on_cpu import GXX, without_a_gpu
from oracle import assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.cuda import sums
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import head_of

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")


class Block(nn.Module):
    """A bottleneck's end: a convolution, a shortcut through another one."""

    def __init__(self, kernel: int, stride: int, shortcut: int = 1):
        super().__init__()
        self.before = nn.Conv2d(8, 16, 3, stride, padding=1)
        self.last = nn.Conv2d(16, 24, kernel, padding=kernel // 2)
        self.shortcut = nn.Conv2d(8, 24, shortcut, stride, padding=shortcut // 2)

    def forward(self, x):
        return (self.last(self.before(x).relu()) + self.shortcut(x)).relu()


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    without_a_gpu(monkeypatch)


def sums_in(model: deltaconvert.DeltaModel) -> int:
    return sum(isinstance(head_of(step.operator), ConvSum) for step in model._program.operators)


def convert(network: nn.Module, monkeypatch, frame: torch.Tensor, **options) -> deltaconvert.DeltaModel:
    """Converts as for a GPU whose kernels add maps; here torch computes such a sum on whole maps."""
    monkeypatch.setattr(sums, "adds_maps", lambda first, second, **_: second.weight[0, 0].numel() == 1)
    return deltaconvert.convert(network, frame, backend="cuda", **options)


@pytest.mark.parametrize("kernel, stride, shortcut", [(1, 1, 1), (1, 2, 1), (3, 2, 1), (1, 2, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_equal_to_the_reference(monkeypatch, kernel, stride, shortcut, threshold):
    torch.manual_seed(0)
    network = Block(kernel, stride, shortcut).eval()
    video = scripted_video((2, 8, 21, 26), torch.float32)[:5]
    options = {"threshold": {"activation": threshold}}
    ours = convert(network, monkeypatch, video[0], **options)
    theirs = deltaconvert.convert(network, video[0], backend="reference", **options)
    assert sums_in(ours) == 1
    for t, frame in enumerate(video):
        assert_close(ours(frame), theirs(frame), f"frame {t}")
    if threshold == 0:
        masks = theirs.masks()
        masks["shortcut"] = masks["last"]  # the sum goes by its first part's name
        for path, mask in ours.masks().items():
            assert torch.equal(mask, masks[path]), path
        last = ours(video[-1])
        ours.reset()
        assert_same_bits(ours(video[-1]), last, "after a reset")


def test_not_where_both_have_windows(monkeypatch):
    assert sums_in(convert(Block(3, 2, 3).eval(), monkeypatch, torch.randn(1, 8, 21, 26))) == 0


def test_not_where_the_sum_is_read_twice(monkeypatch):
    class Twice(Block):
        def forward(self, x):
            y = self.last(self.before(x).relu())
            return (y + self.shortcut(x)).relu() + y

    assert sums_in(convert(Twice(1, 1).eval(), monkeypatch, torch.randn(1, 8, 21, 26))) == 0


def test_names_and_work_of_both(monkeypatch):
    network = Block(1, 2).eval()
    frame = torch.randn(1, 8, 21, 26)
    ours = convert(network, monkeypatch, frame)
    apart = deltaconvert.convert(network, frame, backend="reference")
    assert sum(row.macs for row in ours.explain().rows) == sum(row.macs for row in apart.explain().rows)
    (row,) = (row for row in ours.explain().rows if row.path == "shortcut")
    assert row.operator == "Conv2d + Conv2d + add + relu"
