"""watching/watch.py: frames of a camera, which are on the host, through networks that may be elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.watching.measure import Dense
from deltaconvert.watching.watch import Summary, resize, watch, watch_video

HEIGHT, WIDTH = 40, 56


def camera(frames):
    """A patch of 6 x 10 pixels changes in each frame, somewhere else."""
    draw = torch.Generator("cpu").manual_seed(0)
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=draw, device="cpu")
    for t in range(frames):
        yield image.clone()
        patch = torch.randint(0, 256, (6, 10, 3), dtype=torch.uint8, generator=draw, device="cpu")
        image[5 * t : 5 * t + 6, 20:30] = patch


def prepare(frame):
    return frame.permute(2, 0, 1)[None].float() / 255


def test_beside_the_dense_network(backend):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    where = network[0].weight.device
    model = deltaconvert.convert(network, prepare(next(camera(1))).to(where), backend=backend)
    summary = Summary(WIDTH, HEIGHT)
    for seen in watch(model, camera(6), prepare, dense=Dense(model)):
        summary.add(seen)
        assert seen.mask.shape == (HEIGHT, WIDTH) and seen.mask.device.type == "cpu"
    assert summary.frames == 6 and summary.difference.relative < 1e-5
    assert all(math.isclose(density, 60 / (HEIGHT * WIDTH), rel_tol=1e-5) for density in summary.densities)
    assert "times as fast" in str(summary)


class Clip(list):
    width, height = WIDTH, HEIGHT


def test_pixels_that_are_not_finite_are_told():
    def broken(frame):
        x = prepare(frame)
        x[:, 1, 3, 4] = math.nan
        return x

    model = deltaconvert.convert(nn.Conv2d(3, 2, 3).eval(), prepare(next(camera(1))), backend="reference")
    plain = watch_video(model, Clip(camera(2)), prepare)
    assert "nonfinite" not in plain.to_json() and "NaN" not in str(plain)
    summary = watch_video(model, Clip(camera(3)), broken)
    assert summary.to_json()["nonfinite"] == {"input_0": 1}, "it was the same in all frames"
    assert "\n  input_0: 1 pixel came in with NaN or infinity; in a frame, the gate's" in str(summary)


@pytest.mark.parametrize("size", [(45, 60), (20, 28), (19, 11), (1, 1), (301, 3)])
def test_resized_to_a_grey_level(size):
    """In whole numbers: as in floats, but for the rounding of each side."""
    frame = next(camera(1))
    small = resize(frame, size)
    floats = F.interpolate(
        frame.permute(2, 0, 1)[None].float(), size[::-1], mode="bilinear", align_corners=False, antialias=True
    )
    assert small.dtype == torch.uint8 and small.is_contiguous()
    assert (small.permute(2, 0, 1) - floats[0]).abs().max() < 1.01
    assert resize(frame, (WIDTH, HEIGHT)) is frame and resize(frame, None) is frame
