"""A convolution for each of its kernels: its weights in the order the kernel reads them, its parameters, its launch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.layout import (
    STEP,
    depth_of,
    is_transposed,
    lanes_of_pixel,
    piece_of,
    steps_of,
    window_of,
)
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Window

WEIGHT_BYTES = 288  # that a thread of kernels/depthwise.cu holds (HOLD)
SHARED_BYTES = 228 << 10  # of a multiprocessor; a block takes 1 KB for itself


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
    compares: bool = False  # with the threshold, stores and marks; else it stores all that it makes
    may_compare: bool = True  # of those that do where a warp holds a pixel
    more: tuple[Any, ...] = ()  # arguments behind those of every kernel


def by_pixel(operator: Any, window: Window | None, source: Any, edge: Any) -> Head:
    """kernels/conv.cu"""
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    weight = _weight_rows(operator).to(number)  # outputs, kh, kw, inputs
    outputs, kh, kw, per_group = weight.shape
    pitch = -(-outputs // 8) * 8
    padded = weight.new_zeros(kh, kw, per_group, pitch)
    padded[..., :outputs] = weight.permute(1, 2, 3, 0)
    bias = _padded_bias(operator, pitch, number, padded.device)
    addresses = [t.data_ptr() for t in (source.values, padded, bias)]
    at, *geometry = window_of(source, window)
    numbers = (at, pitch, *geometry, per_group, outputs // operator.groups, is_transposed(operator), 0)
    return Head(
        "conv.cu", struct.pack("=3Q16i", *addresses, *numbers), weights=(padded, bias), channels=outputs
    )


def by_channel(
    operator: Any, window: Window | None, source: Any, edge: Any, thread: tuple[int, int, int]
) -> Head:
    """kernels/depthwise.cu; thread: one of THREADS_OF_CHANNELS."""
    weight = _weight_rows(operator).to(edge.values.dtype)  # outputs, kh, kw, 1
    outputs, kh, kw, _ = weight.shape
    padded = weight.new_zeros(kh, kw, source.pitch)
    padded[..., :outputs] = weight[..., 0].permute(1, 2, 0)
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    bias = _padded_bias(operator, source.pitch, number, padded.device)
    addresses = [t.data_ptr() for t in (source.values, padded, bias)]
    pitch, height, width, _, _, *geometry = window_of(source, window)
    wide, run, at_once = thread
    wide = min(wide, 16 // edge.values.dtype.itemsize, edge.pitch)
    return Head(
        "depthwise.cu",
        struct.pack("=3Q10i", *addresses, pitch, height, width, *geometry, len(edge.values)),
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
        weights=(padded, bias),
        channels=outputs,
        may_compare=compares_depthwise(kh * kw, edge, wide),
    )


def compares_depthwise(taps: int, edge: Any, wide: int) -> bool:
    """Whether the threads of a pixel are a warp's, and hold the weights of `wide` channels: read again for each pixel
    those of 5x5 windows on 96 channels made of 6 us 55, where `commit` takes 5."""
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
        channels=len(_weight_rows(operator)),
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
        channels=len(_weight_rows(operator)),
        cluster=tile["SPLIT"],
    )


def exact_bytes(tile: dict[str, int]) -> int:
    """Shared memory of kernels/conv_exact.cu: Tile::Shared."""
    m, n = tile["BM"], tile["BN"]
    return 3 * (m + n) * STEP + 64 + 2 * m * 16 + (m * n * 4 if tile["SPLIT"] > 1 else 16)


def _in_rows(spaced: Tensor, dtype: torch.dtype) -> Tensor:
    return _as_tf32(spaced) if dtype == torch.float32 else spaced.to(dtype)


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
    weight = _weight_rows(operator)
    outputs, kh, kw, channels = weight.shape
    pixel, piece, depth = source.pitch * dtype.itemsize, piece_of(source), depth_of(source)
    steps = steps_of(operator, source)
    rows = -(-outputs // width) * width
    spaced = weight.new_zeros(rows, steps * STEP // dtype.itemsize, dtype=torch.float32)
    spaced[:outputs, : kh * kw * depth].view(outputs, kh, kw, -1)[..., :channels] = weight
    packed = packing(spaced, dtype)
    bias = _padded_bias(operator, rows, torch.float32, packed.device)
    transposed = is_transposed(operator)
    _, height, across, _, _, sh, sw, ph, pw, dh, dw = window_of(source, window)
    sign = -1 if transposed else 1
    taps = []
    for place in range(steps * STEP // piece):
        tap, part = divmod(place, depth * dtype.itemsize // piece)
        y, x = divmod(tap, kw)
        inside = tap < kh * kw
        taps.append((sign * y * dh, sign * x * dw, part * piece) if inside else (0, 0, -1))
    table = _table("=2hi", taps, packed.device)
    addresses = [t.data_ptr() for t in (source.values, packed, bias, table)]
    head = struct.pack("=4Q8i", *addresses, pixel, height, across, sh, sw, ph, pw, steps)
    return head, (packed, bias, table), dict(TRANSPOSE=1, STRIDE_H=sh, STRIDE_W=sw) if transposed else {}


def by_wgmma(
    operator: Any,
    window: Window | None,
    source: Any,
    edge: Any,
    tile: dict[str, int],
    up: tuple[int, int] = (1, 1),
    also: tuple[Conv2d, Any] | None = None,
) -> Head:
    """kernels/conv_wgmma.cu

    up: of a transposed convolution that is `operator`, one on pixels. also: a 1x1 convolution that is added to it, and
    the map that it reads.

    Where a pixel's channels are whole steps, the taps of the same channels follow each other: most of what a tap reads
    is what its neighbour has just read.
    """
    dtype = edge.values.dtype
    weight = _weight_rows(operator)
    outputs, kh, kw, channels = weight.shape
    piece, depth = piece_of(source), depth_of(source)
    values = piece // dtype.itemsize  # of a piece
    apart, pieces = source.pitch // values, depth // values  # from pixel to pixel; of a pixel
    whole = STEP // piece  # pieces of a step
    if pieces % whole == 0:
        order = [
            (tap, first + part)
            for first in range(0, pieces, whole)
            for tap in range(kh * kw)
            for part in range(whole)
        ]
    else:
        order = [(tap, part) for tap in range(kh * kw) for part in range(pieces)]
    spaced = weight.new_zeros(outputs, kh * kw, depth, dtype=torch.float32)
    spaced[..., :channels] = weight.flatten(1, 2)
    spaced = spaced.flatten(1)
    second: tuple[int, ...] = (0,) * 6
    if also is not None:
        order += [(kh * kw, part) for part in range(depth_of(also[1]) // values)]
        spaced = torch.cat([spaced, _pixel_rows(*also)], 1)
        second = _second_map(*also)
    steps = -(-len(order) // whole)
    even = steps + steps % 2  # small tiles take two steps at a time
    blocks, width = -(-outputs // tile["BN"]), tile["BN"]
    at = torch.tensor([tap * pieces + part for tap, part in order], device=weight.device)
    rows = weight.new_zeros(blocks * width, even * whole, values, dtype=torch.float32)
    rows[:outputs, : len(order)] = spaced.view(outputs, -1, values)[:, at]
    chunks = torch.arange(8, device=weight.device)
    swizzled = chunks ^ (torch.arange(width, device=weight.device).view(-1, 1) % 8)
    tiles = rows.view(blocks, width, even, 8, 16 // dtype.itemsize).permute(0, 2, 1, 3, 4)
    tiles = tiles.gather(3, swizzled.view(1, 1, width, 8, 1).expand(tiles.shape))
    packed = _as_tf32(tiles) if dtype == torch.float32 else tiles.to(dtype)
    bias = _padded_bias(operator, blocks * width, torch.float32, packed.device)
    if also is not None:
        bias += _padded_bias(also[0], blocks * width, torch.float32, packed.device)
    _, height, across, _, _, sh, sw, ph, pw, dh, dw = window_of(source, window)
    offsets = [(y * dh * across + x * dw) * apart for y in range(kh) for x in range(kw)] + [0]
    many = kh * kw > 31
    taps = [(offsets[tap] + part, tap) for tap, part in order]
    taps += [(0, 63 if many else 31)] * (even * whole - len(taps))
    alike = all(at % whole == 0 for at in (pieces, *((depth_of(also[1]) // values,) if also else ())))
    if alike:  # the pieces of a step are of one tap
        taps = taps[::whole]
    table = _table("=2i", taps, packed.device)
    addresses = [t.data_ptr() for t in (source.values, packed, bias, table)]
    numbers = (apart, height, across, sh, sw, ph, pw, kh, kw, dh, dw, steps, len(source.values))
    stages = tile["STAGES"] * (tile["BM"] + tile["BN"]) * STEP
    loaders = 128 if tile["BM"] == 64 else 0
    of_rows = tile["BM"] * ((21 if many else 17) + (4 if also else 0)) + tile["BN"] * 8
    slots = stages // (128 * STEP)  # of the smallest tile
    if loaders:  # two tiles more are written down, and each slot has two barriers
        of_rows += tile["BM"] * 9 + tile["BN"] * 8 + slots * 8 + 56
    shared_bytes = stages + of_rows + (slots + 1) * 8 + 8 * len(taps)
    shared_bytes = max(shared_bytes, whole_bytes(tile))
    compares = has_threshold(edge) and up == (1, 1) and tile["BN"] >= outputs
    more: tuple[Any, ...] = (np.uint64(0), np.uint64(0), np.float32(0))  # nothing to compare with
    if compares:
        more = (edge.marks.bits, edge.marks.changed, edge.limits)
    return Head(
        "conv_wgmma.cu",
        struct.pack("=4Q18iQ", *addresses, *numbers, *second),
        "conv",
        {
            "AT_ONCE": blocks_at_once(shared_bytes),
            "PIECE": piece,
            **({"STEP_TAPS": 1} if alike else {}),
            "MANY_TAPS": int(many),
            **({"COMPARE": 1, "WEIGHTED": int(edge.is_weighted)} if compares else {}),
            **({"ALSO": 1} if also else {}),
            **({} if up == (1, 1) else {"UP_H": up[0], "UP_W": up[1]}),
            **tile,
        },
        threads=2 * tile["BM"] + loaders,
        shared_bytes=shared_bytes,
        weights=(packed, bias, table),
        channels=outputs // (up[0] * up[1]),
        cluster=tile["SPLIT"],
        up=up,
        compares=compares,
        more=more,
    )


def _pixel_rows(operator: Conv2d, source: Any) -> Tensor:
    """The weights of a 1x1 convolution: outputs x values of a pixel."""
    weight = operator.weight.flatten(1)
    rows = weight.new_zeros(len(weight), depth_of(source), dtype=torch.float32)
    rows[:, : weight.shape[1]] = weight
    return rows


def _second_map(operator: Conv2d, source: Any) -> tuple[int, ...]:
    """From `also_pitch` on, in struct Head."""
    pieces = source.pitch * source.values.dtype.itemsize // piece_of(source)
    return (pieces, *source.values.shape[2:], *operator.stride, source.values.data_ptr())


def whole_bytes(tile: dict[str, int]) -> int:
    """Shared memory of kernels/whole.cuh."""
    if "WHOLE" not in tile:
        return 0
    around, rows = tile["WHOLE"] - 1, 2 * tile["EACH"]
    pixels = (rows + around) * (64 + around)
    if tile["FLAT"]:
        pixels = 64 * rows + around * (tile["FLAT"] + 1)
    halo = pixels * tile["PART"]
    return -(-halo // 1024) * 1024 + tile["SLOTS"] * (tile["BN"] * STEP + 16)


def has_threshold(edge: Any) -> bool:
    return edge.threshold is not None


def blocks_at_once(shared_bytes: int) -> int:
    return max(1, SHARED_BYTES // (shared_bytes + 1024))


def _as_tf32(x: Tensor) -> Tensor:
    """Rounded to nearest as the device rounds the other factor (cvt.rna): ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _weight_rows(operator: Any) -> Tensor:
    """(outputs, kh, kw, inputs of a group) of a convolution or a transposed one."""
    weight = operator.weight
    if not is_transposed(operator):
        return weight.permute(0, 2, 3, 1)
    inputs, outputs, kh, kw = weight.shape
    grouped = weight.view(operator.groups, inputs // operator.groups, outputs, kh, kw)
    return grouped.permute(0, 2, 3, 4, 1).reshape(operator.groups * outputs, kh, kw, -1)


def _padded_bias(operator: Any, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    bias = torch.zeros(length, dtype=dtype, device=device)
    if operator.bias is not None:
        bias[: len(operator.bias)] = operator.bias
    return bias


def _table(layout: str, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    packed = b"".join(struct.pack(layout, *row) for row in rows)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(device)
