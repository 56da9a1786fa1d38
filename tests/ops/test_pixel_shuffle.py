"""ops/pixel_shuffle.py"""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_shuffle(backend, factor, size):
    check_operator(nn.PixelShuffle(factor), (2, 2 * factor**2, *size), threshold=0.1, backend=backend)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4)])
def test_unshuffle(backend, factor, size):
    shape = (2, 3, size[0] * factor, size[1] * factor)
    check_operator(nn.PixelUnshuffle(factor), shape, threshold=0.1, backend=backend)


def test_functions(backend):
    network = Call(lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, upscale_factor=2), downscale_factor=4))
    check_operator(network, (1, 4, 6, 10), backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_convolutions(backend, dtype):
    """Super-resolution on half the size; the tail of the shuffle is fused, a gate among it."""
    network = Call(
        lambda m, x: m.out(
            (F.pixel_shuffle(m.up(F.pixel_unshuffle(x, 2)), 2) + x).relu() * m.out(x).mean((2, 3), True)
        ),
        up=nn.Conv2d(12, 12, 3, padding=1),
        out=nn.Conv2d(3, 3, 3, padding=1),
    )
    check_operator(network, (2, 3, 22, 14), dtype=dtype, backend=backend)


def test_stays_dense(backend):
    network = Call(lambda m, x: F.pixel_shuffle(x.unsqueeze(0), 2))
    check_operator(network, (1, 4, 3, 5), backend=backend, expect="dense", reason="not N C H W")
