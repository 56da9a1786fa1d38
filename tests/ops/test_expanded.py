"""ops/expanded.py, and the pass that makes it, passes/join_expansions.py"""

import copy

import pytest
import torch
from oracle import Call, assert_same_bits, check_operator, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import bands
from deltaconvert.passes.join_expansions import CHANNELS


def inverted_residual(channels, out, *, wide=24, stride=1, kernel=3, dilation=1, act=nn.ReLU6, groups=None):
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1),
        act(),
        nn.Conv2d(wide, wide, kernel, stride, padding, dilation, groups=groups or wide),
        act(),
        nn.Conv2d(wide, out, 1),
    )


def operators(module, frame, **options):
    delta = deltaconvert.convert(module.eval(), frame, backend="cpu", **options)
    return [row.operator for row in delta.explain().rows if row.kind == "delta"]


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 9)])
def test_inverted_residual(kernel, stride, size):
    network = inverted_residual(4, 6, kernel=kernel, stride=stride)
    check_operator(network, (2, 4, *size), dtype=torch.float32, backend="cpu")


def test_in_double_precision():
    check_operator(inverted_residual(4, 6), (2, 4, 12, 10), backend="cpu")


def test_skip_and_smooth_activation():
    network = Call(lambda m, x: x + m.block(x), block=inverted_residual(4, 4, act=nn.SiLU))
    check_operator(network, (2, 4, 13, 10), threshold=0.1, dtype=torch.float32, backend="cpu")


def test_one_node():
    module, frame = inverted_residual(4, 6), torch.randn(1, 4, 12, 10)
    assert operators(module, frame) == ["Conv2d + relu6 + Conv2d + relu6 + Conv2d"]
    delta = deltaconvert.convert(module, frame, backend="cpu")
    whole = deltaconvert.convert(module, frame, backend="reference")
    assert sum(row.macs for row in delta.explain().rows) == sum(row.macs for row in whole.explain().rows)
    assert delta.stats().state_bytes < whole.stats().state_bytes / 2


def test_what_stays_apart():
    frame, apart = torch.randn(1, 4, 12, 10), ["Conv2d + relu6", "Conv2d + relu6 + Conv2d"]
    assert operators(inverted_residual(4, 6, dilation=2), frame) == apart
    assert operators(inverted_residual(4, 6, groups=12), frame) == apart
    wide = inverted_residual(CHANNELS + 1, 6, wide=CHANNELS + 2)
    assert operators(wide, torch.randn(1, CHANNELS + 1, 12, 10)) == apart
    stays = inverted_residual(4, 6)
    assert operators(stays, frame, threshold={"1": 0.1})[0] == "Conv2d + relu6"
    read_twice = Call(
        lambda m, x: (lambda y: m.depthwise(y) + y)(m.point(x).relu()),
        point=nn.Conv2d(4, 24, 1),
        depthwise=nn.Conv2d(24, 24, 3, padding=1, groups=24),
    )
    assert operators(read_twice, frame)[0] == "Conv2d + relu"


@pytest.mark.parametrize("stride", (1, 2))
def test_bands(monkeypatch, stride):
    monkeypatch.setattr(bands, "GAIN", float("inf"))
    monkeypatch.setattr(bands, "BAND_BYTES", 5000)
    used = []
    run = bands.Bands.run
    monkeypatch.setattr(bands.Bands, "run", lambda self, inputs: (used.append(self), run(self, inputs))[1])
    module = inverted_residual(4, 6, stride=stride).eval()
    frames = scripted_video((2, 4, 47, 37), torch.float32)
    model = deltaconvert.convert(module, frames[0], backend="cpu")
    fresh, used[:] = copy.deepcopy(model), []
    for frame in frames:
        outputs = model(frame)
        with torch.no_grad():
            torch.testing.assert_close(outputs, module(frame))
        fresh.reset()
        assert_same_bits(outputs, fresh(frame), "against a reset model")
    assert used, "no frame was computed in bands"
