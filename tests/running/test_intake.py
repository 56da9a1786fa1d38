"""Frames as programs have them: laid out anyhow, of subclasses, changed behind our back; and those that do not fit."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_close
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError

SHAPE = (2, 3, 13, 11)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, stride=2, groups=2)
    return nn.Sequential(*layers).eval()


class Image(torch.Tensor):
    """As torchvision's tv_tensors are."""


def inside(frame):
    """Rows and columns of a larger image."""
    larger = torch.randn(2, 3, 20, 30)
    larger[:, :, 4:17, 6:17] = frame
    return larger[:, :, 4:17, 6:17]


def every_second(frame):
    wide = torch.randn(2, 3, 13, 22)
    wide[..., ::2] = frame
    return wide[..., ::2]


def from_inference(frame):
    with torch.inference_mode():
        return frame.clone()


def of_an_array(frame):
    array = frame.permute(0, 2, 3, 1).cpu().numpy().copy()
    return torch.from_numpy(array).to(frame.device).permute(0, 3, 1, 2)


LAID_OUT = {
    "plain": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a view of N H W C": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "of an array H W C": of_an_array,
    "columns first": lambda x: x.mT.contiguous().mT,
    "inside": inside,
    "every second": every_second,
    "one of two streams": lambda x: torch.stack([x, x + 1], 1)[:, 0],
    "at an odd address": lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
    "with gradients": lambda x: x.clone().requires_grad_(),
    "made with gradients": lambda x: x.clone().requires_grad_() * 1,
    "a parameter": lambda x: nn.Parameter(x),
    "inference mode": from_inference,
    "a subclass": lambda x: x.as_subclass(Image),
    "minus, not yet done": lambda x: torch._neg_view(-x),
    "one image for all": lambda x: x[:1].expand(2, -1, -1, -1),
}


def test_frames_may_lie_in_memory_as_they_like(backend):
    """Each after the other, so that what is stored has another layout than what comes."""
    dense, frame = network(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, frame, backend=backend)
    for t, (name, laid_out) in enumerate(2 * list(LAID_OUT.items())):
        frame = frame.clone()
        frame[:, :, t % 9 : t % 9 + 3, 2:5] += 0.1
        given = laid_out(frame)
        with torch.no_grad():
            expected = dense(given.detach().as_subclass(torch.Tensor).clone())
        got = model(given)
        assert type(got) is torch.Tensor and not got.requires_grad, name
        assert_close(got, expected)
        got.fill_(torch.nan)  # outputs are the caller's


@pytest.mark.parametrize("name", LAID_OUT)
def test_so_may_the_example(backend, name):
    dense, frame = network(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, LAID_OUT[name](frame), threshold="1%", backend=backend)
    plain = deltaconvert.convert(
        dense, LAID_OUT[name](frame).detach().clone(), threshold="1%", backend=backend
    )
    assert model.thresholds == pytest.approx(plain.thresholds)


def test_one_buffer_that_a_camera_fills(backend):
    dense, buffer = network(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, buffer, backend=backend)
    for t in range(4):
        buffer[:, :, t : t + 3, 2:5] += 0.1
        with torch.no_grad():
            assert_close(model(buffer), dense(buffer))


MISFITS = {
    "float64": (lambda x: x.double(), r"is torch\.float64; .*\(frame\.to\(torch\.float32\)"),
    "half": (lambda x: x.half(), r"is torch\.float16; .* or convert the network again for torch\.float16"),
    "bytes": (
        lambda x: (x * 255).byte(),
        r"is torch\.uint8; .*: scale bytes .* frame\.to\(torch\.float32\) / 255",
    ),
    "one image": (
        lambda x: x[0],
        r"shape \(3, 13, 11\); .* 4 dimensions \(N C H W\): one image is frame\[None\]",
    ),
    "another device": (
        lambda x: x.to("meta"),
        r"is on meta; .* converted on (cpu|cuda:0): frame\.to\('\1'\)",
    ),
    "an array": (lambda x: x.cpu().numpy(), r"is a ndarray; .*: torch\.from_numpy\(frame\)"),
    "sparse": (lambda x: x.to_sparse(), r"a sparse_coo tensor: .*frame\.to_dense\(\)"),
    "colours last": (
        lambda x: x.permute(0, 2, 3, 1),
        r"shape 2x13x11x3 \(it last ran on 2x3x13x11\); .* last: frame\.permute\(0, 3, 1, 2\)",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_say_the_way_out(backend, name):
    change, message = MISFITS[name]
    dense, frame = network(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, frame, backend=backend)
    before = model(frame)
    with pytest.raises(InputError, match=message):
        model(change(frame))
    assert torch.equal(model(frame), before) and model.stats().frames == 2 and model.stats().work == 0
