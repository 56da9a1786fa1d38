"""The launches for blocks of a ShuffleNet: sums that take and join channels, depthwise convolutions together."""

from __future__ import annotations

import pytest
import torch
from blocks import STEPS, Branches, Shuffled, steps_of
from torch import nn

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import convs
from deltaconvert.backends.cuda.siblings import note_siblings
from deltaconvert.backends.cuda.slices import fold_orders, join_pixel_concats

DEVICE = torch.device("cuda", 0)
SHARES = (1, 0.3, 0.001, 0, 0.05, 1, 0.01)  # of the pixels that a frame changes
TILE = {"64x64x4/1": {"BM": 64, "BN": 64, "STAGES": 4, "SPLIT": 1}}


def frames(dtype: torch.dtype):
    frame = torch.randn(2, 3, 122, 166, device=DEVICE, dtype=dtype)
    for share in SHARES:
        fresh = frame + torch.randn_like(frame)
        frame = torch.where(torch.rand(2, 1, 122, 166, device=DEVICE) < share, fresh, frame)
        yield frame


def without(monkeypatch, passes, network, frame, **options) -> deltaconvert.DeltaModel:
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "PASSES", tuple(p for p in cuda.PASSES if p not in passes))
        return deltaconvert.convert(network, frame, backend="cuda", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@torch.no_grad()
def test_blocks_in_fewer_steps(gpu, dtype, turned, threshold, monkeypatch):
    """The half that is passed on has the same bits, and the other is as exact."""
    monkeypatch.setattr(convs, "_wgmma_tiles", lambda steps, channels: TILE)
    torch.manual_seed(0)
    network = Shuffled(turned=turned).to(DEVICE, dtype).eval()
    video = list(frames(dtype))
    options = {"threshold": {"input": threshold}}
    ours = deltaconvert.convert(network, video[0], backend="cuda", **options)
    apart = without(monkeypatch, (join_pixel_concats, fold_orders), network, video[0], **options)
    assert steps_of(ours) == STEPS
    for frame, share in zip(video, SHARES, strict=True):
        torch.testing.assert_close(ours(frame), apart(frame), rtol=0.02, atol=0.02, msg=str(share))
    if threshold == 0:
        last = ours(video[-1])
        ours.reset()
        assert torch.equal(ours(video[-1]), last)


class Wide(Branches):
    """Of 96 channels: tiles of 32, three of which are a pixel."""

    def __init__(self, kernel: int):
        super().__init__(kernel, 96)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kernel", [3, 5])
@torch.no_grad()
def test_bits_of_a_launch_for_each(gpu, dtype, kernel, monkeypatch):
    monkeypatch.setattr(convs, "_wgmma_tiles", lambda steps, channels: TILE)
    torch.manual_seed(0)
    network: nn.Module = Wide(kernel).to(DEVICE, dtype).eval()
    video = list(frames(dtype))
    ours = deltaconvert.convert(network, video[0], backend="cuda")
    apart = without(monkeypatch, (note_siblings,), network, video[0])
    assert sum(step.siblings is not None for step in ours._program.operators) == 5
    for frame, share in zip(video, SHARES, strict=True):
        for mine, theirs in zip(ours(frame), apart(frame), strict=True):
            assert torch.equal(mine, theirs), share
