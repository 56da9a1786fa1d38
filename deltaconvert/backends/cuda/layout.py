"""How the pixels of a map lie in memory, and what a convolution's sum reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.reach import Window

STEP = 128  # bytes of a row in one step of the sum, in kernels/conv_tiles.cu and conv_wgmma.cu


def pitch_of(channels: int, dtype: torch.dtype) -> int:
    """The distance between two pixels, in values: whole vectors of 16 bytes, so that each can be read at once; four
    values for a frame with fewer channels."""
    if channels <= 4:
        return 4
    vector = vector_of(dtype)
    return -(-channels // vector) * vector


def vector_of(dtype: torch.dtype) -> int:
    """The number of values in 16 bytes, which a thread reads at once."""
    return max(1, 16 // dtype.itemsize)


def runs_begin(frame: Tensor, pixels: int, dims: Sequence[int]) -> bool:
    """Whether runs of so many pixels of a row are aligned, so that the device can read them at once.

    dims: the dimensions whose strides lead from one run to another.
    """
    apart = (frame.stride(dim) for dim in dims if frame.shape[dim] > 1)
    at = frame.data_ptr() // frame.dtype.itemsize
    return all(step % pixels == 0 for step in (at, frame.shape[3], *apart))


def depth_of(source: Any) -> int:
    """The values of a pixel that a sum reads; the pitch is larger if the map is part of another."""
    return pitch_of(source.values.shape[1], source.values.dtype)


def piece_of(source: Any) -> int:
    """Bytes that a thread reads of a pixel at once."""
    return min(16, depth_of(source) * source.values.dtype.itemsize)


def steps_of(operator: Any, source: Any) -> int:
    """Steps of the sum over taps and channels."""
    kh, kw = operator.weight.shape[2:]
    return -(-kh * kw * depth_of(source) * source.values.dtype.itemsize // STEP)


def window_of(source: Any, window: Window | None) -> tuple[int, ...]:
    """pitch, H, W, kernel, stride, padding, dilation: as the kernels' structs have them."""
    height, width = source.values.shape[2:]
    if window is None:
        return (source.pitch, height, width, 1, 1, 1, 1, 0, 0, 1, 1)
    geometry = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return (source.pitch, height, width, *geometry)


def lanes_of_pixel(channels: int, width: int) -> int:
    """Threads of `width` channels that hold a pixel: a power of two."""
    return 1 << (-(-channels // width) - 1).bit_length()


def is_transposed(operator: Any) -> bool:
    return isinstance(operator, ConvTranspose2d)
