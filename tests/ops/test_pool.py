"""ops/pool.py"""

import pytest
import torch
import torch.nn.functional as F
from drawn import pairs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

import deltaconvert

WINDOWS = dict(
    kernel=pairs(1, 4),
    stride=pairs(1, 5),
    padding=pairs(0, 2),
    ceil=st.booleans(),
    size=pairs(1, 9),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)


def legal(size, kernel, stride, padding, dilation, ceil):
    for s, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        if 2 * p > k or s + 2 * p < d * (k - 1) + 1:
            return False
    return True


@settings(max_examples=examples(12))
@given(dilation=pairs(1, 2), **WINDOWS)
def test_any_max_pool(backend, kernel, stride, padding, dilation, ceil, size, batch, seed):
    assume(legal(size, kernel, stride, padding, dilation, ceil))
    module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    check_operator(module, (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


@settings(max_examples=examples(12))
@given(count=st.booleans(), divisor=st.sampled_from([None, None, 3]), **WINDOWS)
def test_any_average_pool(backend, kernel, stride, padding, ceil, count, divisor, size, batch, seed):
    assume(legal(size, kernel, stride, padding, (1, 1), ceil))
    module = nn.AvgPool2d(kernel, stride, padding, ceil, count, divisor)
    check_operator(module, (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


@settings(max_examples=examples(8))
@given(norm=st.sampled_from([1, 2, 3, 2.5]), **WINDOWS)
def test_any_norm_pool(backend, norm, kernel, stride, padding, ceil, size, batch, seed):
    assume(legal(size, kernel, stride, (0, 0), (1, 1), False))
    # Odd powers of what is below zero have no root.
    module = nn.Sequential(nn.ReLU(), nn.LPPool2d(norm, kernel, stride, ceil))
    check_operator(module, (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


def test_averages_of_fewer_pixels_are_incremental():
    """On cpu, a change in the middle of the map computes no more than the tiles around it."""
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
    network = nn.Sequential(pool).eval()
    frame = torch.randn(2, 8, 64, 64)
    model = deltaconvert.convert(network, frame, backend="cpu")
    model(frame)
    frame[0, :, 30:33, 30:33] += 1
    model(frame)
    (computed,) = [layer.computed for layer in model.stats().layers if layer.path == "0"]
    assert 0 < computed <= 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(5, 1, 2),
        nn.MaxPool2d(2, 3, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d((3, 2), 1, 1, count_include_pad=False, divisor_override=5),
        nn.Sequential(nn.AvgPool2d(3, 2, 1, True, False), nn.ReLU()),
        nn.LPPool2d(2, 3, 2),
    ],
    ids=str,
)
def test_usual_pools(backend, module, dtype):
    check_operator(module, (2, 3, 16, 9), dtype=dtype, backend=backend)


SPELLINGS = {
    "max": lambda m, x: F.max_pool2d(x, 2),
    "max torch": lambda m, x: torch.max_pool2d(x, (2, 3), stride=1, padding=1),
    "max keywords": lambda m, x: F.max_pool2d(
        input=x, kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True
    ),
    "avg": lambda m, x: F.avg_pool2d(x, 3, 1, 1),
    "norm": lambda m, x: F.lp_pool2d(x, 2, kernel_size=(3, 2), stride=1),
    "avg keywords": lambda m, x: F.avg_pool2d(x, kernel_size=(3, 1), padding=(1, 0), count_include_pad=False),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(backend, name):
    check_operator(Call(SPELLINGS[name]), (2, 2, 7, 8), backend=backend)


def test_indices_stay_dense(backend):
    def unpool(m, x):
        values, indices = m.pool(x)
        return m.up(values, indices)

    pool = Call(lambda m, x: F.max_pool2d(x, 2, return_indices=True))
    check_operator(pool, (1, 2, 6, 6), backend=backend, expect="dense", reason="max_pool2d")
    module = Call(unpool, pool=nn.MaxPool2d(2, return_indices=True), up=nn.MaxUnpool2d(2))
    check_operator(module, (1, 2, 6, 6), backend=backend, expect="dense", reason="it returns indices")
