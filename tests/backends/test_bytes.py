"""Frames of bytes, as a camera gives them, to a network that makes floats of them: x.float() / 255."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import assert_close, assert_same_bits, assert_still, scripted_video
from torch import Tensor, nn

import deltaconvert


class OfBytes(nn.Module):
    """uint8 frames, N H W C or N C H W, to what the network was trained on."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, permute: bool):
        super().__init__()
        self.network, self.dtype, self.permute = network, dtype, permute
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.permute else x
        return self.network((x.to(self.dtype) / 255 - self.mean) / self.std)


def video_of(shape: tuple[int, ...]) -> list[Tensor]:
    return [
        (40 * frame + 128).clamp(0, 255).to(torch.uint8) for frame in scripted_video(shape, torch.float32)
    ]


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_of_bytes(backend, dtype, permute):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2))
    network = OfBytes(network, dtype, permute).eval().to(dtype)
    video = [
        frame.permute(0, 2, 3, 1).contiguous() if permute else frame for frame in video_of((2, 3, 22, 39))
    ]
    model = deltaconvert.convert(network, video[0], backend=backend)
    fresh = copy.deepcopy(model)
    for t, frame in enumerate(video):
        output = model(frame)
        with torch.no_grad():
            assert_close(output, network(frame), f"frame {t}")
        fresh.reset()
        assert_same_bits(output, fresh(frame), f"frame {t} against a reset model")
        if t in (1, len(video) - 1):
            assert_still(model, f"frame {t}")
    steps = [step.node.name for step in model._program._steps]
    assert any("float" in name or "to" in name for name in steps) == (backend == "reference"), (
        "cast on the way"
    )


def test_a_threshold_in_grey_levels(backend):
    """The cast comes first, so the input's threshold is in grey levels."""
    network = OfBytes(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.float32, permute=False).eval()
    frame = torch.full((1, 3, 9, 40), 100, dtype=torch.uint8)
    model = deltaconvert.convert(network, frame, backend=backend, threshold={"input": 10})
    model(frame)
    first = model(frame)
    moved = frame.clone()
    moved[..., 3, 4:20] += 10
    assert torch.equal(model(moved), first)
    moved[..., 3, 4:8] += 1
    seen = frame.clone()
    seen[..., 3, 4:8] += 11
    with torch.no_grad():
        assert_close(model(moved), network(seen))
    assert float(model.stats().layers[0].density) == 4 / (9 * 40)


def test_a_cast_that_others_read_too(backend):
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            floats = x.float()
            return self.conv(floats) + floats.cumsum(1)

    network = Twice()
    network.conv = nn.Conv2d(3, 3, 3, padding=1)
    model = deltaconvert.convert(network.eval(), video_of((2, 3, 9, 11))[0], backend=backend)
    for t, frame in enumerate(video_of((2, 3, 9, 11))):
        with torch.no_grad():
            assert_close(model(frame), network(frame), f"frame {t}")
