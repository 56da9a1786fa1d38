"""kernels/depthwise.cu against torch, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from on_cpu import GXX, Kernel
from torch import Tensor

from deltaconvert.backends.cuda import pitch_of
from deltaconvert.backends.cuda.depthwise import by_channel
from deltaconvert.backends.cuda.kernels import TYPES
from deltaconvert.backends.cuda.layout import lanes_of_pixel
from deltaconvert.backends.cuda.marks import bits_of, list_of
from deltaconvert.backends.cuda.tail import device_bytes
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Window

TYPES_OF_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run a CUDA source on the CPU")


def _edge(values: Tensor, threshold: float | None = None) -> SimpleNamespace:
    n, channels, height, width = values.shape
    memory = torch.zeros(n, height, width, pitch_of(channels, values.dtype), dtype=values.dtype)
    memory[..., :channels] = values.permute(0, 2, 3, 1)
    view = memory[..., :channels].permute(0, 3, 1, 2)
    return SimpleNamespace(values=view, pitch=memory.shape[3], threshold=threshold)


@pytest.mark.parametrize(
    "dtype, blocks, thread",
    [
        (torch.float32, 1, (8, 1, 3)),
        (torch.float32, 7, (2, 4, 4)),
        (torch.float32, 2, (4, 2, 4)),
        (torch.float32, 3, (2, 8, 4)),
        (torch.float32, 2, (4, 4, 4)),
        (torch.float64, 7, (2, 4, 4)),
    ],
)
@pytest.mark.parametrize(
    "channels, kernel, stride, padding, dilation",
    [
        (24, (3, 3), (1, 1), (1, 1), (1, 1)),
        (10, (3, 3), (2, 2), (1, 1), (1, 1)),
        (3, (5, 5), (1, 1), (4, 4), (2, 2)),
        (9, (1, 7), (1, 2), (0, 3), (1, 1)),
    ],
)
def test_listed_pixels(dtype, blocks, thread, channels, kernel, stride, padding, dilation):
    """Of a list in any order, some of them side by side, and no others; the same bits where all are listed."""
    torch.manual_seed(channels)
    x, weight = torch.randn(2, channels, 9, 11, dtype=dtype), torch.randn(channels, 1, *kernel, dtype=dtype)
    bias = torch.randn(channels, dtype=dtype)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, channels)
    n, _, height, width = expected.shape
    source, out = _edge(x), _edge(torch.full_like(expected, 7))
    window = Window(kernel, stride, padding, dilation, (9, 11), (height, width))
    head = by_channel(Conv2d(weight, bias, stride, padding, dilation, channels), window, source, out, thread)
    run = Kernel(head.source, head.name, {**head.macros, "TYPE": TYPES[dtype]})

    def marked(listed: Tensor) -> Tensor:
        chosen = torch.zeros(n * height * width, dtype=torch.bool)
        chosen[listed.long()] = True
        return chosen.view(n, 1, height, width)

    def compute(listed: Tensor) -> Tensor:
        run(
            (blocks,),
            head.threads,
            device_bytes(head.packed, x.device),
            torch.zeros(16, dtype=torch.uint8),
            out.values,
            *map(np.int32, (out.pitch, channels)),
            listed,
            torch.tensor([len(listed)], dtype=torch.int32),
            *map(np.int32, (height, width, 0)),
            *(np.uint64(0), np.uint64(0), TYPES_OF_NUMBERS[dtype](0), np.uint64(0), np.uint64(0)),
            bits_of(marked(listed)),
        )
        return out.values.clone()

    every = torch.randperm(n * height * width).int()
    listed = every[: len(every) // 2].clone()
    listed[: len(listed) // 2] = listed[: len(listed) // 2].sort().values
    chosen = marked(listed).expand_as(expected)
    half = compute(listed)
    torch.testing.assert_close(half[chosen], expected[chosen], rtol=1e-4, atol=1e-5)
    assert (half[~chosen] == 7).all()
    whole = compute(every)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[chosen], half[chosen])


@pytest.mark.parametrize("thread", [(8, 1, 3), (4, 4, 4), (2, 8, 4)])
@pytest.mark.parametrize("channels", [8, 24, 40])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_comparison(thread, channels, stride, weighted):
    """Listed pixels of which a channel moved by more than its threshold are stored, marked, counted and listed; where
    many are listed in tiles."""
    torch.manual_seed(channels)
    x, weight = torch.randn(2, channels, 19, 37), torch.randn(channels, 1, 3, 3)
    bias, strides = torch.randn(channels), (stride, stride)
    expected = F.conv2d(x, weight, bias, strides, 1, 1, channels)
    n, _, height, width = expected.shape
    chance = torch.rand(n, 1, height, width)
    moved, listed = chance < 0.3, (chance < 0.2) | (chance > 0.6)
    each = torch.linspace(0.3, 0.7, channels) if weighted else torch.full((channels,), 0.5)
    only = torch.arange(channels).view(1, -1, 1, 1) == torch.randint(channels, (n, 1, height, width))
    step = torch.where(moved, 1.2, 0.8) * each.view(1, -1, 1, 1) * only
    source, out = _edge(x), _edge(expected + step, 0.5)
    before = out.values.clone()
    window = Window((3, 3), strides, (1, 1), (1, 1), (19, 37), (height, width))
    head = by_channel(Conv2d(weight, bias, strides, (1, 1), (1, 1), channels), window, source, out, thread)
    assert head.macros["STAGED"] == (thread[1] > 1 and (channels < 40 or stride == 1)), "a row has to fit"
    lanes = lanes_of_pixel(channels, head.macros["WIDTH"])
    comparing = {"TYPE": 1, "COMPARE": 1, "WEIGHTED": int(weighted), "VOTERS": lanes}
    marks, counts = torch.zeros_like(bits_of(moved)), torch.zeros(n, dtype=torch.int32)
    places = torch.full((n * height * width,), -1, dtype=torch.int32)
    count, among = torch.zeros(1, dtype=torch.int32), list_of(listed)
    Kernel(head.source, head.name, {**head.macros, **comparing})(
        (2,),
        head.threads,
        device_bytes(head.packed, x.device),
        torch.zeros(16, dtype=torch.uint8),
        out.values,
        *map(np.int32, (out.pitch, channels)),
        among.places,
        among.count,
        *map(np.int32, (height, width, 0)),
        *(marks, counts, F.pad(each, (0, -channels % 8)) if weighted else np.float32(0.5), places, count),
        bits_of(listed),
    )
    stored = moved & listed
    assert torch.equal(marks, bits_of(stored)) and torch.equal(counts.long(), stored.sum((1, 2, 3)))
    assert torch.equal(places[: int(count)].sort().values, list_of(stored).places)
    torch.testing.assert_close(out.values, torch.where(stored, expected, before), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.where(stored, before, out.values), before), "nothing else is written"
