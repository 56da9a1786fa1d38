"""Inverted residuals whose wide map is not stored."""

import pytest
import torch
from chained import NAN, WINDOWS, assert_bits_stay, chain_of, convolution, depthwise, poisoned, rows_of
from oracle import assert_same_bits, check_operator
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import residuals
from deltaconvert.backends.cpu.chains import Stage
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.residuals import Strips
from deltaconvert.passes import join_residuals
from deltaconvert.reach import Window

pytestmark = pytest.mark.skipif(not loops.FOUND, reason="numba is not installed")


@pytest.mark.parametrize("geometry", WINDOWS, ids=repr)
@pytest.mark.parametrize("channels, between, out", [(3, 20, 0), (8, 33, 5), (5, 16, 24)])
def test_the_bits_of_both_alone(monkeypatch, geometry, channels, between, out):
    """Whatever the strips, bands and pixels, the bits are those of both convolutions by themselves."""
    x = torch.randn(2, channels, 19, 40)
    wide, window_conv = convolution(channels, between), depthwise(between, geometry)
    first, stages = Stage(wide, False, 0.0, 6.0), [Stage(window_conv, False, 0.0, 6.0)]
    middle = torch.full_like(rows_of(wide(x)), NAN)
    chain_of([first], None).run(rows_of(x), None, len(middle), [], middle)
    expected = window_conv(wide(x).clamp(0, 6)).clamp(0, 6)
    window = Window(*geometry, x.shape[2:], tuple(expected.shape[2:]))
    adds = []
    if out:
        stages.append(Stage(convolution(between, out), True))
        expected = stages[-1].conv(expected)
        adds.append(torch.randn_like(rows_of(expected)))
    alone = torch.full_like(rows_of(expected), NAN)
    chain_of(stages, window).run(middle, None, len(alone), adds, alone)
    sums = rows_of(expected) + (adds[0] if adds else 0)
    torch.testing.assert_close(alone, sums, rtol=1e-5, atol=1e-5)  # sums in another order than oneDNN's
    for ring, lines in ((1, 8), (20_000, 1), (1 << 20, 3)):
        monkeypatch.setattr(residuals, "RING_BYTES", ring)
        monkeypatch.setattr(residuals, "FEWEST_LINES", lines)
        strips, every = Strips(first, stages, window, poisoned()), torch.full_like(alone, NAN)
        strips.run(rows_of(x), None, len(every), adds, every)
        assert_same_bits(every, alone, "all pixels")
        for count in (1, 7, 60, len(alone) - 3):
            pixels, some = torch.randperm(len(alone))[:count].sort().values, torch.full_like(alone, NAN)
            strips.run(rows_of(x), pixels, count, adds, some)
            assert_same_bits(some[pixels], alone[pixels], f"{count} pixels")
            assert some.isnan().sum() == (len(alone) - count) * alone.shape[1]
            placed, beside = alone.new_empty(count, alone.shape[1]), [rows[pixels] for rows in adds]
            strips.run(rows_of(x), pixels, count, beside, placed, by_place=True)
            assert_same_bits(placed, alone[pixels], f"{count} rows")


def block(channels, wide, out, stride=1, activation=nn.ReLU6):
    return nn.Sequential(
        *(nn.Conv2d(channels, wide, 1), activation()),
        *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), activation()),
        nn.Conv2d(wide, out, 1),
    )


class Network(nn.Module):
    def __init__(self, activation=nn.ReLU6):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = block(8, 24, 8, 1, activation), block(8, 40, 12, 2, activation)
        self.c = nn.Sequential(block(12, 20, 6, 1, activation), nn.SiLU())

    def forward(self, x):
        x = self.first(x)
        return self.c(self.b(x + self.a(x)))


@pytest.mark.parametrize("activation", (nn.ReLU6, nn.LeakyReLU))
@pytest.mark.parametrize("threshold", (0.0, 0.1))
def test_networks(monkeypatch, threshold, activation):
    monkeypatch.setattr(join_residuals, "BYTES", 0)
    model = Network(activation).eval()
    check_operator(model, (2, 3, 19, 23), dtype=torch.float32, threshold=threshold, backend="cpu")


def test_only_large_maps_join_and_bits_stay(monkeypatch):
    frame, model = torch.rand(1, 3, 21, 18), Network().eval()
    apart = deltaconvert.convert(model, frame, backend="cpu")
    monkeypatch.setattr(join_residuals, "BYTES", 0)
    together = deltaconvert.convert(model, frame, backend="cpu")
    assert together.stats().state_bytes < 0.7 * apart.stats().state_bytes
    assert_bits_stay(model, together, apart, frame)
