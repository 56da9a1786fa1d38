"""Convolutions with many kinds of windows, for tests of chains."""

import torch
from oracle import assert_same_bits

import deltaconvert
from deltaconvert.backends.cpu.chains import Chain
from deltaconvert.ops.conv import Conv2d

NAN = float("nan")
WINDOWS = [  # kernel, stride, padding, dilation
    *(((1, 1), (1, 1), (0, 0), (1, 1)), ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1))),
    *(((1, 5), (1, 3), (0, 2), (1, 1)), ((5, 3), (2, 1), (2, 1), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1))),
    *(((3, 3), (1, 1), (2, 2), (2, 2)), ((3, 2), (1, 1), (5, 4), (1, 1)), ((4, 1), (1, 2), (0, 3), (2, 3))),
]


def convolution(channels, out, geometry=WINDOWS[0], bias=True):
    kernel, *rest = geometry
    # Weights that keep the magnitude of the values, which the tolerances below assume.
    weight = torch.randn(out, channels, *kernel) / (channels * kernel[0] * kernel[1]) ** 0.5
    return Conv2d(weight, torch.randn(out) if bias else None, *rest, 1)


def depthwise(channels, geometry):
    kernel, *rest = geometry
    return Conv2d(torch.randn(channels, 1, *kernel) / 3, torch.randn(channels), *rest, channels)


def chain_of(stages, window):
    return Chain(stages, window, poisoned())


def poisoned():
    """Gives out new scratch memory, full of NaN, for each call."""
    memory = []

    def scratch(size):
        memory.append(torch.full((size,), 255, dtype=torch.uint8))  # of floats that is NaN
        return memory[-1].data_ptr()

    return scratch


def rows_of(maps):
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous()


def assert_bits_stay(model, together, apart, frame):
    """For a moving box, two conversions that store different maps give the same bits, as does a fresh one."""
    for step in range(4):
        frame[:, :, 3 * step : 3 * step + 4, 5:9] = torch.rand(1, 3, 4, 4)
        assert_same_bits(together(frame), apart(frame), f"frame {step}")
    fresh = deltaconvert.convert(model, frame, backend="cpu")
    assert_same_bits(together(frame), fresh(frame), "whatever came before")
