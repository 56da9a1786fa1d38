"""Depthwise convolutions: which kernels can compute one, and their parameters."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda.conv_kernels import Head, has_threshold, padded_bias, weight_rows
from deltaconvert.backends.cuda.layout import is_transposed, lanes_of_pixel, vector_of, window_of
from deltaconvert.reach import Window

WEIGHT_BYTES = 288  # that a thread of kernels/depthwise.cu holds (HOLD)
# Of kernels/depthwise.cu: the channels and pixels of a thread, blocks of a multiprocessor.
THREADS_OF_CHANNELS = [(8, 1, 3), (8, 2, 3), (4, 4, 4), (2, 8, 4), (2, 4, 4)]


def ways_by_channel(
    operator: Any, window: Window | None, source: Any, edge: Any, multiplies: bool
) -> dict[str, Callable[[], Head]]:
    """Ways to compute a depthwise convolution, by name. multiplies: whether the device has tensor cores."""
    parts = operator, window, source, edge
    threads = threads_of_channels(operator, edge)
    ways: dict[str, Callable[[], Head]] = {
        f"channel {thread}": partial(by_channel, *parts, thread) for thread in threads
    }
    if multiplies and has_products(*parts):
        ways["products"] = partial(by_products, *parts)
    return ways


def threads_of_channels(operator: Any, edge: Any) -> list[tuple[int, int, int]]:
    """THREADS_OF_CHANNELS; with a threshold only those that can compare, if any can."""
    vector, taps = vector_of(edge.values.dtype), operator.weight[0, 0].numel()
    comparing = [
        thread
        for thread in THREADS_OF_CHANNELS
        if compares_depthwise(taps, edge, min(thread[0], vector, edge.pitch))
    ]
    return comparing or THREADS_OF_CHANNELS


def is_depthwise(operator: Any) -> bool:
    return not is_transposed(operator) and bool(
        operator.groups == len(operator.weight) > 1 == operator.weight.shape[1]
    )


def by_channel(
    operator: Any, window: Window | None, source: Any, edge: Any, thread: tuple[int, int, int]
) -> Head:
    """kernels/depthwise.cu; thread: one of THREADS_OF_CHANNELS."""
    packed, kept, (kh, kw), geometry = _depthwise(operator, window, source, edge)
    wide, run, at_once = thread
    wide = min(wide, 16 // edge.values.dtype.itemsize, edge.pitch)
    return Head(
        "depthwise.cu",
        packed,
        "depthwise",
        {
            "KH": kh,
            "KW": kw,
            "SW": geometry[1],
            "RUN": run if geometry[-1] == 1 else 1,
            "STAGED": int(_is_staged(source, window, edge, wide, run)),
            "WIDTH": wide,
            "AT_ONCE": at_once,
        },
        threads=128,
        weights=kept,
        channels=len(operator.weight),
        may_compare=compares_depthwise(kh * kw, edge, wide),
        reads_bits=True,
    )


def by_products(operator: Any, window: Window | None, source: Any, edge: Any) -> Head:
    """kernels/depthwise_products.cu"""
    packed, kept, (kh, kw), geometry = _depthwise(operator, window, source, edge)
    return Head(
        "depthwise_products.cu",
        packed,
        "depthwise",
        {"KH": kh, "KW": kw, "SW": geometry[1], "WIDTH": 4, "AT_ONCE": 4},
        threads=128,
        weights=kept,
        channels=len(operator.weight),
        may_compare=False,
        reads_bits=True,
    )


def _depthwise(
    operator: Any, window: Window | None, source: Any, edge: Any
) -> tuple[bytes, tuple[Tensor, ...], tuple[int, int], tuple[int, ...]]:
    """struct Head of the kernels for depthwise convolutions, the tensors in it, the window's size, and its stride,
    padding and dilation."""
    weight = weight_rows(operator).to(edge.values.dtype)  # outputs, kh, kw, 1
    outputs, kh, kw, _ = weight.shape
    padded = weight.new_zeros(kh, kw, source.pitch)
    padded[..., :outputs] = weight[..., 0].permute(1, 2, 0)
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    bias = padded_bias(operator, source.pitch, number, padded.device)
    addresses = [t.data_ptr() for t in (source.values, padded, bias)]
    pitch, height, width, _, _, *geometry = window_of(source, window)
    packed = struct.pack("=3Q10i", *addresses, pitch, height, width, *geometry, len(edge.values))
    return packed, (padded, bias), (kh, kw), tuple(geometry)


def has_products(operator: Any, window: Window | None, source: Any, edge: Any) -> bool:
    """Whether kernels/depthwise_products.cu computes a depthwise convolution: windows up to 5x5, whose weights a thread
    can hold, the same stride of at most 2 for both axes, and pixels of whole vectors."""
    pitch, _, _, kh, kw, sh, sw, _, _, *dilation = window_of(source, window)
    dtype = edge.values.dtype
    fits = max(kh, kw) <= 5 and dilation == [1, 1] and sh == sw <= 2 and pitch % 8 == 0 == edge.pitch % 8
    return fits and dtype in (torch.float16, torch.bfloat16) and not has_threshold(edge)


def compares_depthwise(taps: int, edge: Any, wide: int) -> bool:
    """Whether the threads of a pixel are in one warp, and hold the weights of `wide` channels. To read these again for
    each pixel took 55 us in place of 6 for 5x5 windows on 96 channels, where `commit` takes 5."""
    lanes = lanes_of_pixel(edge.values.shape[1], wide)
    return (
        has_threshold(edge)
        and lanes <= 32
        and taps * wide * max(4, edge.values.dtype.itemsize) <= WEIGHT_BYTES
    )


def _is_staged(source: Any, window: Window | None, edge: Any, wide: int, run: int) -> bool:
    """Whether kernels/depthwise.cu brings tiles into shared memory where many pixels are listed: what it says at
    STAGED, a row fits, and `run` pixels read no further than twice as many. Where a threshold decides about a pixel, a
    tile holds all of its channels."""
    pitch, _, _, kh, kw, sh, sw, _, _, *dilation = window_of(source, window)
    itemsize = source.values.dtype.itemsize
    weights = kh * kw * wide * max(4, itemsize)
    compares = compares_depthwise(kh * kw, edge, wide)
    slot = wide * lanes_of_pixel(edge.values.shape[1], wide) if compares else 32
    a_row = 2 * kh * (15 * sw + kw + 1) * slot * itemsize
    whole = pitch * itemsize % 16 == 0 == slot * itemsize % 16
    fits = whole and weights <= WEIGHT_BYTES and a_row <= 40 << 10
    return fits and dilation == [1, 1] and sh == sw <= 2 and run in (4, 8) and kw <= (run + 1) * sw
