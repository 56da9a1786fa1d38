"""For each kernel that computes convolutions: the weights in the order that it reads, its parameters, its launch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda.layout import (
    STEP,
    depth_of,
    is_transposed,
    piece_of,
    steps_of,
    window_of,
)
from deltaconvert.reach import Window

SHARED_BYTES = 228 << 10  # of a multiprocessor; every block reserves 1 KB of it


@dataclass
class Head:
    """A kernel and what it is launched with.

    weights: tensors whose addresses are packed, kept alive here.
    """

    source: str
    packed: bytes
    name: str = "rows"
    macros: dict[str, Any] = field(default_factory=dict)
    threads: int = 256
    shared_bytes: int = 0
    weights: tuple[Tensor, ...] = ()
    cluster: int = 1  # blocks of a cluster
    channels: int = 0  # that it makes; what is fused behind it may make more
    up: tuple[int, int] = (1, 1)  # rows and columns made of a listed pixel, which is then one of the input
    # It compares with the threshold, stores and marks; else it stores all that it computes.
    compares: bool = False
    may_compare: bool = True  # whether it can, for kernels that compare where a warp holds a pixel
    reads_bits: bool = False  # it also reads the mask of its list, to find listed pixels in tiles
    octets: bool = False  # it can walk the octets of its list (`octets.py`)
    more: tuple[Any, ...] = ()  # further arguments, after those that every kernel has


def by_pixel(operator: Any, window: Window | None, source: Any, edge: Any) -> Head:
    """kernels/conv.cu"""
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    weight = weight_rows(operator).to(number)  # outputs, kh, kw, inputs
    outputs, kh, kw, per_group = weight.shape
    pitch = -(-outputs // 8) * 8
    padded = weight.new_zeros(kh, kw, per_group, pitch)
    padded[..., :outputs] = weight.permute(1, 2, 3, 0)
    bias = padded_bias(operator, pitch, number, padded.device)
    addresses = [t.data_ptr() for t in (source.values, padded, bias)]
    at, *geometry = window_of(source, window)
    numbers = (at, pitch, *geometry, per_group, outputs // operator.groups, is_transposed(operator), 0)
    return Head(
        "conv.cu", struct.pack("=3Q16i", *addresses, *numbers), weights=(padded, bias), channels=outputs
    )


def by_tiles(operator: Any, window: Window | None, source: Any, edge: Any, tile: dict[str, int]) -> Head:
    """kernels/conv_tiles.cu"""
    packed, weights, macros = _gathered(operator, window, source, edge, tile["BN"], _in_rows)
    return Head(
        "conv_tiles.cu",
        packed,
        "conv",
        {**tile, **macros, "PIECE": piece_of(source)},
        threads=32 * tile["WARPS_M"] * tile["WARPS_N"] * tile["WARPS_K"],
        shared_bytes=tile["STAGES"] * (tile["BM"] + tile["BN"]) * STEP,
        weights=weights,
        channels=len(weight_rows(operator)),
        cluster=tile["SPLIT"],
    )


def by_exact(operator: Any, window: Window | None, source: Any, edge: Any, tile: dict[str, int]) -> Head:
    """kernels/conv_exact.cu"""
    packed, weights, macros = _gathered(operator, window, source, edge, tile["BN"], _in_pairs)
    shared_bytes = exact_bytes(tile)
    return Head(
        "conv_exact.cu",
        packed,
        "conv",
        {
            "AT_ONCE": blocks_at_once(shared_bytes),
            "FILLED": min(4, source.values.shape[1]),
            **tile,
            **macros,
        },
        threads=128,
        shared_bytes=shared_bytes,
        weights=weights,
        channels=len(weight_rows(operator)),
        cluster=tile["SPLIT"],
    )


def exact_bytes(tile: dict[str, int]) -> int:
    """Shared memory of kernels/conv_exact.cu: Tile::Shared."""
    m, n = tile["BM"], tile["BN"]
    return 3 * (m + n) * STEP + 64 + 2 * m * 16 + (m * n * 4 if tile["SPLIT"] > 1 else 16)


def _in_rows(spaced: Tensor, dtype: torch.dtype) -> Tensor:
    return as_tf32(spaced) if dtype == torch.float32 else spaced.to(dtype)


def _in_pairs(spaced: Tensor, dtype: torch.dtype) -> Tensor:
    """As kernels/conv_exact.cu reads them: 8 lanes, each two pairs of channels; a vector is two values of a pair."""
    steps = spaced.shape[1] // 32
    parts = spaced.view(-1, 8, 2, 2, steps, 2, 8, 2)  # lane, pair, channel; step, half of it, vector, value
    return parts.permute(0, 5, 2, 1, 4, 6, 7, 3).reshape(spaced.shape)


def _gathered(
    operator: Any,
    window: Window | None,
    source: Any,
    edge: Any,
    width: int,
    packing: Callable[[Tensor, torch.dtype], Tensor],
) -> tuple[bytes, tuple[Tensor, ...], dict[str, Any]]:
    """What kernels/taps.cuh reads: its struct Head, the tensors in it, macros. width: channels of a tile."""
    dtype = edge.values.dtype
    weight = weight_rows(operator)
    outputs, kh, kw, channels = weight.shape
    pixel, piece, depth = source.pitch * dtype.itemsize, piece_of(source), depth_of(source)
    steps = steps_of(operator, source)
    rows = -(-outputs // width) * width
    spaced = weight.new_zeros(rows, steps * STEP // dtype.itemsize, dtype=torch.float32)
    spaced[:outputs, : kh * kw * depth].view(outputs, kh, kw, -1)[..., :channels] = weight
    packed = packing(spaced, dtype)
    bias = padded_bias(operator, rows, torch.float32, packed.device)
    transposed = is_transposed(operator)
    _, height, across, _, _, sh, sw, ph, pw, dh, dw = window_of(source, window)
    sign = -1 if transposed else 1
    taps = []
    for place in range(steps * STEP // piece):
        tap, part = divmod(place, depth * dtype.itemsize // piece)
        y, x = divmod(tap, kw)
        inside = tap < kh * kw
        taps.append((sign * y * dh, sign * x * dw, part * piece) if inside else (0, 0, -1))
    table = table_of("=2hi", taps, packed.device)
    addresses = [t.data_ptr() for t in (source.values, packed, bias, table)]
    head = struct.pack("=4Q8i", *addresses, pixel, height, across, sh, sw, ph, pw, steps)
    return head, (packed, bias, table), dict(TRANSPOSE=1, STRIDE_H=sh, STRIDE_W=sw) if transposed else {}


def has_threshold(edge: Any) -> bool:
    return edge.threshold is not None


def blocks_at_once(shared_bytes: int) -> int:
    return max(1, SHARED_BYTES // (shared_bytes + 1024))


def as_tf32(x: Tensor) -> Tensor:
    """Rounded to TF32 as the device rounds the other factor (cvt.rna): to nearest, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def weight_rows(operator: Any) -> Tensor:
    """(outputs, kh, kw, inputs of a group) of a convolution or a transposed one."""
    weight = operator.weight
    if not is_transposed(operator):
        return weight.permute(0, 2, 3, 1)
    inputs, outputs, kh, kw = weight.shape
    grouped = weight.view(operator.groups, inputs // operator.groups, outputs, kh, kw)
    return grouped.permute(0, 2, 3, 4, 1).reshape(operator.groups * outputs, kh, kw, -1)


def padded_bias(operator: Any, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    bias = torch.zeros(length, dtype=dtype, device=device)
    if operator.bias is not None:
        bias[: len(operator.bias)] = operator.bias
    return bias


def table_of(layout: str, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    packed = b"".join(struct.pack(layout, *row) for row in rows)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(device)
