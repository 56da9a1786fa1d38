"""The first convolution of a frame (kernels/conv_first.cu), on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends import cuda
from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda.conv_kernels import by_windows, has_windows
from deltaconvert.backends.cuda.kernels import on_current_stream
from deltaconvert.backends.cuda.marks import list_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise

DEVICE = torch.device("cuda", 0)
SHARES = (1, 0.5, 0.02, 0.001, 0, 1)


def edge_of(values: Tensor) -> cuda.Edge:
    edge = cuda.Edge(Map(tuple(values.shape), values.dtype, DEVICE))
    edge.values.copy_(values)
    return edge


def conv_of(outputs: int, inputs: int, kernel: tuple[int, int], stride: int, padding: int) -> Conv2d:
    weight = torch.randn(outputs, inputs, *kernel, device=DEVICE, dtype=torch.float16)
    bias = torch.randn(outputs, device=DEVICE, dtype=torch.float16)
    return Conv2d(weight, bias, (stride, stride), (padding, padding), (1, 1), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "outputs, inputs, kernel, padding",
    [
        (24, 3, (3, 3), 1),
        (32, 3, (3, 3), 1),
        (64, 3, (7, 7), 3),
        (20, 4, (5, 5), 0),
        (13, 1, (3, 5), 2),
        (64, 3, (3, 3), 1),
    ],
)
@torch.no_grad()
def test_listed_pixels(gpu, dtype, outputs, inputs, kernel, padding):
    """Those of torch to a rounding, with the same bits whatever else is listed; nothing else is written. A pixel of the
    frame that is no number reaches the windows that hold it."""
    torch.manual_seed(0)
    conv = conv_of(outputs, inputs, kernel, 2, padding).to(dtype)
    x = torch.randn(3, inputs, 83, 121, device=DEVICE).to(dtype)
    x[1, 0, 40, 60] = float("nan")
    x[2, :, 17, 31] = float("inf")
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 2, padding).relu()
    source, out = edge_of(x), edge_of(expected.to(dtype))
    (window,) = conv.reaches([tuple(x.shape)], tuple(expected.shape))
    assert has_windows(conv, window, source, out)
    tail = Tail(outputs, dtype, DEVICE)
    tail.then(Pointwise("relu", {}), ["v"])
    launch = cuda.Launch(cuda.Backend(), by_windows(conv, window, source, out), tail, out)
    whole = None
    for share in SHARES:
        mask = torch.rand(3, 1, *expected.shape[2:], device=DEVICE) < share
        out.values.fill_(-1.0)
        with on_current_stream(DEVICE):
            launch(out.values, list_of(mask))
        chosen = mask.expand_as(expected)
        assert out.values[~chosen].eq(-1).all(), f"{share}: what was not listed is written"
        torch.testing.assert_close(
            out.values[chosen].double(),
            expected[chosen],
            rtol=0.01,
            atol=0.05,
            msg=str(share),
            equal_nan=True,
        )
        whole = out.values.clone() if whole is None else whole
        assert torch.equal(out.values[chosen].view(torch.int16), whole[chosen].view(torch.int16)), share


@pytest.mark.gpu
def test_not_where_it_cannot(gpu):
    def fits(conv: Conv2d, channels: int, dtype: torch.dtype = torch.float16) -> bool:
        x = torch.randn(1, channels, 20, 30, device=DEVICE).to(dtype)
        y = conv.to(dtype)(x)
        (window,) = conv.reaches([tuple(x.shape)], tuple(y.shape))
        return has_windows(conv, window, edge_of(x), edge_of(y))

    assert fits(conv_of(24, 3, (3, 3), 2, 1), 3)
    assert not fits(conv_of(24, 3, (3, 3), 1, 1), 3)
    assert not fits(conv_of(24, 8, (3, 3), 2, 1), 8)
    assert not fits(conv_of(24, 3, (9, 9), 2, 1), 3)
    assert not fits(conv_of(256, 3, (7, 7), 2, 1), 3)
    assert not fits(conv_of(24, 3, (3, 3), 2, 1), 3, torch.float32)
