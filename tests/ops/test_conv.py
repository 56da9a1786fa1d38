"""ops/conv.py"""

import pytest
import torch
import torch.nn.functional as F
from drawn import pairs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

import deltaconvert


@settings(max_examples=examples(15))
@given(
    kernel=pairs(1, 5),
    stride=pairs(1, 4),
    padding=pairs(0, 3),
    dilation=pairs(1, 3),
    groups=st.sampled_from([1, 1, 2, 4]),
    channels=pairs(1, 2),
    size=pairs(1, 11),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_convolution(
    backend, kernel, stride, padding, dilation, groups, channels, size, batch, bias, seed
):
    assume(
        all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True))
    )
    torch.manual_seed(seed)
    inner, outer = (groups * c for c in channels)
    module = nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups, bias)
    check_operator(module, (batch, inner, *size), threshold=0.1, backend=backend, seed=seed)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (1, 1, 1, (5, 7)),  # the border sees padding only
        (1, 2, 1, (6, 5)),
        (2, 4, 0, (9, 11)),  # some input pixels are read by nobody
        (3, 1, 3, (4, 4)),
        (3, 2, (0, 4), (5, 1)),
        (5, 1, 2, (1, 1)),  # smaller than the kernel
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_beside_the_map(backend, kernel, stride, padding, size, dtype):
    check_operator(nn.Conv2d(2, 3, kernel, stride, padding), (2, 2, *size), dtype=dtype, backend=backend)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_larger_maps_in_float32(backend, groups):
    module = nn.Conv2d(6, 12, 3, padding=1, groups=groups)
    check_operator(module, (2, 6, 33, 47), dtype=torch.float32, threshold=0.1, backend=backend)


WEIGHT, BIAS = torch.randn(4, 2, 3, 3), torch.randn(4)
SPELLINGS = {
    "module": nn.Conv2d(2, 4, 3, padding="same"),
    "same, even": Call(lambda m, x: F.conv2d(x, m.w[:, :, 1:], padding="same"), w=WEIGHT),
    "valid": nn.Conv2d(2, 4, 3, padding="valid"),
    "function": Call(lambda m, x: F.conv2d(x, m.w, m.b, stride=2, padding=(1, 0)), w=WEIGHT, b=BIAS),
    "torch.conv2d": Call(lambda m, x: torch.conv2d(input=x, weight=m.w, padding="same"), w=WEIGHT),
    "groups from a size": Call(lambda m, x: F.conv2d(x, m.w[:, :1], groups=x.shape[1]), w=WEIGHT),
    "normalised weight": Call(lambda m, x: F.conv2d(x, F.normalize(m.w, dim=1)), w=WEIGHT),
    "positional": Call(lambda m, x: F.conv2d(x, m.w, m.b, (1, 2), 1, 2, 1), w=WEIGHT, b=BIAS),
    "parameter": Call(lambda m, x: F.conv2d(x, m.w), w=nn.Parameter(WEIGHT.clone())),
    "keyword": Call(lambda m, x: m.conv(input=x), conv=nn.Conv2d(2, 4, 3)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(backend, name):
    check_operator(SPELLINGS[name], (1, 2, 7, 6), backend=backend)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_modes(backend, mode, dtype):
    """An even kernel with padding "same" pads one side more than the other."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, (3, 5), (1, 2), (1, 2), padding_mode=mode),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 2), padding_mode=mode),
    )
    check_operator(network, (2, 2, 9, 14), dtype=dtype, threshold=0.1, backend=backend)


def test_a_rule_means_the_padding_of_a_convolution_too(backend):
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU())
    model = deltaconvert.convert(network.eval(), torch.zeros(1, 2, 6, 5), keep_dense=["0"], backend=backend)
    kinds = {row.path: row.kind for row in model.explain().rows}
    assert kinds["0.pad"] == kinds["0"] == "dense"


def test_stays_dense(backend):
    def check(module, reason, shapes=(1, 2, 7, 6)):
        check_operator(module, shapes, backend=backend, expect="dense", reason=reason)

    check(Call(lambda m, x: F.conv2d(x, x.mean() * m.w), w=WEIGHT), "its weight is computed in every frame")
    check(Call(lambda m, x: m.conv(x[0])[None], conv=nn.Conv2d(2, 4, 3)), "not N C H W")
