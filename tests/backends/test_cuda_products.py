"""Depthwise convolutions on tensor cores (kernels/depthwise_products.cu), on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from on_gpu import DEVICE, edge_of
from torch import Tensor

from deltaconvert.backends import cuda
from deltaconvert.backends.cuda.depthwise import by_products, has_products
from deltaconvert.backends.cuda.kernels import on_current_stream
from deltaconvert.backends.cuda.marks import list_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise

SHARES = (1, 0.5, 0.02, 0.001, 0, 1)


def conv_of(channels: int, kernel: tuple[int, int], stride: int, padding: int, dtype: torch.dtype) -> Conv2d:
    weight = torch.randn(channels, 1, *kernel, device=DEVICE, dtype=dtype)
    bias = torch.randn(channels, device=DEVICE, dtype=dtype)
    return Conv2d(weight, bias, (stride, stride), (padding, padding), (1, 1), channels)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [8, 24, 52, 96, 160])
@pytest.mark.parametrize(
    "kernel, stride, padding",
    [((3, 3), 1, 1), ((5, 5), 1, 2), ((3, 3), 2, 1), ((5, 5), 2, 2), ((1, 5), 1, 0), ((4, 2), 2, 3)],
)
@torch.no_grad()
def test_listed_pixels(gpu, dtype, channels, kernel, stride, padding):
    """Those of torch to a rounding, with the same bits whatever else is listed; nothing else is written."""
    torch.manual_seed(0)
    conv = conv_of(channels, kernel, stride, padding, dtype)
    x = torch.randn(3, channels, 61, 83, device=DEVICE).to(dtype)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding, 1, channels)
    added = torch.randn_like(exact).to(dtype)
    source, out, beside = edge_of(x), edge_of(exact.to(dtype)), edge_of(added)
    (window,) = conv.reaches([tuple(x.shape)], tuple(exact.shape))
    assert has_products(conv, window, source, out)
    tail = Tail(channels, dtype, DEVICE)
    tail.then(Arithmetic("add", None, False), ["v", tail.operand(beside, tuple(exact.shape[2:]))])
    tail.then(Pointwise("relu", {}), ["v"])
    launch = cuda.Launch(cuda.Backend(), by_products(conv, window, source, out), tail, out)
    expected = (exact + added.double()).relu()
    whole = None
    for share in SHARES:
        mask = torch.rand(3, 1, *exact.shape[2:], device=DEVICE) < share
        out.values.fill_(float("nan"))
        with on_current_stream(DEVICE):
            launch(out.values, list_of(mask))
        chosen = mask.expand_as(exact)
        assert out.values[~chosen].isnan().all(), f"{share}: what was not listed is written"
        torch.testing.assert_close(
            out.values[chosen].double(), expected[chosen], rtol=0.01, atol=0.01, msg=str(share)
        )
        whole = out.values.clone() if whole is None else whole
        assert torch.equal(out.values[chosen], whole[chosen]), f"{share}: other bits"


@pytest.mark.gpu
def test_what_lies_between_two_pixels_stays_zero(gpu):
    """52 channels, 56 from pixel to pixel."""
    conv = conv_of(52, (3, 3), 1, 1, torch.float16)
    x = torch.randn(1, 52, 20, 30, device=DEVICE).half()
    source, out = edge_of(x), edge_of(x)
    (window,) = conv.reaches([tuple(x.shape)], tuple(x.shape))
    tail = Tail(52, torch.float16, DEVICE)
    tail.then(Arithmetic("add", 1.0, False), ["v"])
    launch = cuda.Launch(cuda.Backend(), by_products(conv, window, source, out), tail, out)
    with on_current_stream(DEVICE):
        launch(out.values, list_of(torch.ones(1, 1, 20, 30, dtype=torch.bool, device=DEVICE)))
    assert out.pitch == 56
    memory = out.values.permute(0, 2, 3, 1).as_strided((1, 20, 30, 56), (20 * 30 * 56, 30 * 56, 56, 1))
    assert memory[..., 52:].eq(0).all()


@pytest.mark.gpu
def test_not_where_it_cannot(gpu):
    x = torch.randn(1, 16, 20, 30, device=DEVICE)

    def fits(conv: Conv2d, values: Tensor) -> bool:
        shape = tuple(conv(values).shape)
        (window,) = conv.reaches([tuple(values.shape)], shape)
        return has_products(conv, window, edge_of(values), edge_of(conv(values)))

    assert fits(conv_of(16, (3, 3), 1, 1, torch.float16), x.half())
    assert not fits(conv_of(16, (3, 3), 1, 1, torch.float32), x)
    assert not fits(conv_of(16, (7, 7), 1, 3, torch.float16), x.half())
    assert not fits(conv_of(4, (3, 3), 1, 1, torch.float16), x[:, :4].half())
