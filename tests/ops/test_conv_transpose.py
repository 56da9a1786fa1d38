"""ops/conv_transpose.py"""

import pytest
import torch
import torch.nn.functional as F
from drawn import pairs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn


@settings(max_examples=examples(15))
@given(
    kernel=pairs(1, 4),
    stride=pairs(1, 4),
    padding=pairs(0, 2),
    extra=pairs(0, 3),
    dilation=pairs(1, 2),
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=pairs(1, 2),
    size=pairs(1, 7),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_transposed_convolution(
    backend, kernel, stride, padding, extra, dilation, groups, channels, size, batch, bias, seed
):
    each = list(zip(size, kernel, stride, padding, extra, dilation, strict=True))
    assume(all(e < max(s, d) for _, _, s, _, e, d in each))  # what torch takes
    assume(all((n - 1) * s - 2 * p + d * (k - 1) + e + 1 >= 1 for n, k, s, p, e, d in each))
    torch.manual_seed(seed)
    inner, outer = (groups * c for c in channels)
    module = nn.ConvTranspose2d(inner, outer, kernel, stride, padding, extra, groups, bias, dilation)
    check_operator(module, (batch, inner, *size), threshold=0.1, backend=backend, seed=seed)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"),
    [
        (1, 3, 0, 2),  # stride beyond the kernel: some output pixels hold the bias alone
        (2, 4, 0, 3),
        (2, 2, 0, 0),
        (4, 2, 1, 0),
        (3, 2, 1, 1),
        (3, 1, 2, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_and_output_padding(backend, kernel, stride, padding, extra, dtype):
    module = nn.ConvTranspose2d(3, 2, kernel, stride, padding, extra)
    check_operator(module, (2, 3, 5, 4), dtype=dtype, backend=backend)


WEIGHT, BIAS = torch.randn(2, 3, 2, 2), torch.randn(3)
SPELLINGS = {
    "function": Call(lambda m, x: F.conv_transpose2d(x, m.w, m.b, stride=2), w=WEIGHT, b=BIAS),
    "torch": Call(lambda m, x: torch.conv_transpose2d(x, m.w, m.b, (2, 1), 0, (1, 0)), w=WEIGHT, b=BIAS),
    "module": Call(lambda m, x: m.up(input=x), up=nn.ConvTranspose2d(2, 3, 2, 2)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(backend, name):
    check_operator(SPELLINGS[name], (2, 2, 5, 4), backend=backend)


def test_output_size(backend):
    sized = Call(lambda m, x: m.up(x, output_size=(12, 9)), up=nn.ConvTranspose2d(2, 3, 3, 2))
    check_operator(sized, (1, 2, 5, 4), backend=backend)
    down, up = nn.Conv2d(2, 3, 3, 2, 1), nn.ConvTranspose2d(3, 2, 3, (2, 2), 1)
    like = Call(lambda m, x: m.up(m.down(x), output_size=x.size()), down=down, up=up)
    for size in ((9, 12), (10, 11)):
        check_operator(like, (2, 2, *size), threshold=0.1, backend=backend)


def test_stays_dense(backend):
    computed = Call(lambda m, x: F.conv_transpose2d(x, m.w * x.mean()), w=WEIGHT)
    check_operator(computed, (1, 2, 5, 4), backend=backend, expect="dense", reason="its weight is computed")
