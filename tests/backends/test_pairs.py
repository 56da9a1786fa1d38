"""Pairs of convolutions whose intermediate map is not stored."""

import pytest
import torch
from chained import assert_bits_stay
from oracle import check_operator
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import pairs
from deltaconvert.backends.cpu.native import loops
from deltaconvert.passes import join_pairs

pytestmark = pytest.mark.skipif(not loops.FOUND, reason="numba is not installed")


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 20, (1, 5), padding=(0, 2)), nn.ReLU6()),
        *(nn.Conv2d(20, 17, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(17, 17, 3, padding=1)),
        nn.Conv2d(17, 2, 3, padding=1, stride=2),
    ).eval()


@pytest.mark.parametrize("lines", (0, 100))
@pytest.mark.parametrize("threshold", (0.0, 0.1))
def test_networks(monkeypatch, threshold, lines):
    monkeypatch.setattr(join_pairs, "BYTES", 0)
    monkeypatch.setattr(pairs, "BAND_BYTES", lines * 4 * 23 * 20)
    check_operator(network(), (2, 3, 19, 23), dtype=torch.float32, threshold=threshold, backend="cpu")


def test_only_large_maps_pair_and_bits_stay(monkeypatch):
    frame = torch.rand(1, 3, 21, 18)
    model = network()
    apart = deltaconvert.convert(model, frame, backend="cpu")
    monkeypatch.setattr(join_pairs, "BYTES", 0)
    monkeypatch.setattr(pairs, "BAND_BYTES", 0)
    together = deltaconvert.convert(model, frame, backend="cpu")
    assert together.stats().state_bytes < 0.8 * apart.stats().state_bytes
    assert_bits_stay(model, together, apart, frame)
