"""Convolutions: which kernel and tile computes one, its weights in the order the kernel reads them, its parameters."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.tail import NoKernel, Tail
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.linear import MapLinear
from deltaconvert.reach import Pixel, Window

STEP = 128  # bytes of a row in a step of the sum, in kernels/conv_tiles.cu and conv_wgmma.cu
SHARED_BYTES = 228 << 10  # of a multiprocessor; a block takes 1 KB for itself
MOST_TAPS = 63  # of kernels/conv_wgmma.cu
# Of kernels/depthwise.cu: the channels and pixels of a thread, blocks of a multiprocessor.
THREADS_OF_CHANNELS = [(8, 1, 3), (8, 2, 3), (4, 4, 4), (2, 8, 4), (2, 4, 4)]


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
    more: tuple[Any, ...] = ()  # arguments behind those of every kernel


def conv(
    operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any, tuner: Any, tail: Tail
) -> Head:
    source = inputs[0]
    window = reaches[0] if isinstance(reaches[0], Window) else None
    also = None
    if isinstance(operator, ConvSum):
        operator, also = operator.first, (operator.second, inputs[1])
    parts = operator, window, source, edge
    on_gpu = edge.values.device.type == "cuda"
    in_tiles = on_gpu and (_on_tensor_cores(operator, edge) or _in_exact_tiles(operator, edge))
    if also is not None and not (
        on_gpu and _on_tensor_cores(operator, edge) and fits_wgmma(operator, source, edge)
    ):
        raise NoKernel("a sum of two convolutions")
    ways: dict[str, Callable[[], Head]]
    if is_depthwise(operator):
        ways = {f"channel {thread}": partial(by_channel, *parts, thread) for thread in THREADS_OF_CHANNELS}
    elif in_tiles:
        ways = candidates(*parts, also)
    else:
        return by_pixel(*parts)
    if not on_gpu:
        return next(iter(ways.values()))()
    shapes = tuple(source.values.shape), tuple(operator.weight.shape)
    compared = " compared" if _has_threshold(edge) else ""
    layer = f"{edge.values.dtype} {shapes} {window_of(source, window)} {tail.macros()}{compared}"
    if also is not None:
        layer += f" and {tuple(also[1].values.shape)} {also[0].stride}"
    if not _on_tensor_cores(operator, edge):
        layer = f"exact {layer}"  # the same in TF32 is another choice
    best: Head = tuner.best(layer, ways, inputs, edge, tail)
    return best


def linear(operator: MapLinear, inputs: Sequence[Any], edge: Any, tuner: Any, tail: Tail) -> Head:
    """Of maps of one pixel: a 1x1 convolution. Elsewhere a matrix product of torch is faster."""
    (source,) = inputs
    on_pixels = Conv2d(operator.weight.unflatten(1, (-1, 1, 1)), operator.bias, (1, 1), (0, 0), (1, 1), 1)
    if source.values.shape[2:] != (1, 1) or edge.values.device.type != "cuda":
        raise NoKernel("a matrix product")
    if not _on_tensor_cores(on_pixels, edge):
        raise NoKernel("a matrix product without tensor cores")
    return conv(on_pixels, [Pixel()], inputs, edge, tuner, tail)


def candidates(
    operator: Any, window: Window | None, source: Any, edge: Any, also: tuple[Conv2d, Any] | None = None
) -> dict[str, Callable[[], Head]]:
    """Ways to compute a convolution in tiles, by name. also: see `by_wgmma`."""
    if not _on_tensor_cores(operator, edge):
        exact = _exact_tiles(edge, steps_of(operator, source))
        return {name: partial(by_tiles, operator, window, source, edge, tile) for name, tile in exact.items()}
    up = up_of(operator)
    if up != (1, 1) and fits_wgmma(on_pixels(operator), source, edge):
        operator, window = on_pixels(operator), None
    else:
        up = (1, 1)
    steps = steps_of(operator, source) + (steps_of(*also) if also else 0)
    if not fits_wgmma(operator, source, edge):
        return {"mma": partial(by_tiles, operator, window, source, edge, _tile(edge, steps))}
    channels = len(operator.weight)
    tiles = _wgmma_tiles(steps, channels)
    if _has_threshold(edge) and up == (1, 1) and channels <= 128:
        # A tile that holds all channels of its pixels compares them itself.
        tiles = {name: tile for name, tile in tiles.items() if tile["BN"] >= channels}
    elif also is None and fits_whole(operator, window, source):
        tiles.update(_whole_tiles(channels))
    rest: dict[str, Any] = {"up": up, "also": also}
    return {
        name: partial(by_wgmma, operator, window, source, edge, tile, **rest) for name, tile in tiles.items()
    }


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
    numbers = (at, pitch, *geometry, per_group, outputs // operator.groups, _is_transposed(operator), 0)
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
            "STAGED": int(_is_staged(source, window, wide, run)),
            "WIDTH": wide,
            "AT_ONCE": at_once,
        },
        threads=128,
        weights=(padded, bias),
        channels=outputs,
    )


def _is_staged(source: Any, window: Window | None, wide: int, run: int) -> bool:
    """Whether kernels/depthwise.cu brings tiles into shared memory where all pixels are listed: what it says at STAGED,
    two rows fit, and `run` pixels read no further than twice as many."""
    pitch, _, _, kh, kw, sh, sw, _, _, *dilation = window_of(source, window)
    itemsize = source.values.dtype.itemsize
    weights = kh * kw * wide * max(4, itemsize)
    two_rows = (sh + kh) * (15 * sw + kw + 1) * 16 * wide * itemsize
    fits = pitch * itemsize % 16 == 0 and weights <= 288 and two_rows <= 45 << 10
    return fits and dilation == [1, 1] and sh == sw and run in (4, 8) and kw <= (run + 1) * sw


def by_tiles(operator: Any, window: Window | None, source: Any, edge: Any, tile: dict[str, int]) -> Head:
    """kernels/conv_tiles.cu"""
    dtype = edge.values.dtype
    weight = _weight_rows(operator)
    outputs, kh, kw, channels = weight.shape
    pixel, piece, depth = source.pitch * dtype.itemsize, piece_of(source), depth_of(source)
    steps = steps_of(operator, source)
    rows = -(-outputs // tile["BN"]) * tile["BN"]
    spaced = weight.new_zeros(rows, steps * STEP // dtype.itemsize, dtype=torch.float32)
    spaced[:outputs, : kh * kw * depth].view(outputs, kh, kw, -1)[..., :channels] = weight
    rounded = dtype == torch.float32 and not tile.get("EXACT")
    packed = _as_tf32(spaced) if rounded else spaced.to(dtype)
    bias = _padded_bias(operator, rows, torch.float32, packed.device)
    transposed = _is_transposed(operator)
    _, height, width, _, _, sh, sw, ph, pw, dh, dw = window_of(source, window)
    sign = -1 if transposed else 1
    taps = []
    for place in range(steps * STEP // piece):
        tap, part = divmod(place, depth * dtype.itemsize // piece)
        y, x = divmod(tap, kw)
        inside = tap < kh * kw
        taps.append((sign * y * dh, sign * x * dw, part * piece) if inside else (0, 0, -1))
    table = _table("=2hi", taps, packed.device)
    addresses = [t.data_ptr() for t in (source.values, packed, bias, table)]
    return Head(
        "conv_tiles.cu",
        struct.pack("=4Q8i", *addresses, pixel, height, width, sh, sw, ph, pw, steps),
        "conv",
        {**tile, "PIECE": piece, **(dict(TRANSPOSE=1, STRIDE_H=sh, STRIDE_W=sw) if transposed else {})},
        threads=32 * tile["WARPS_M"] * tile["WARPS_N"] * tile["WARPS_K"],
        shared_bytes=tile["STAGES"] * (tile["BM"] + tile["BN"]) * STEP,
        weights=(packed, bias, table),
        channels=outputs,
        cluster=tile["SPLIT"],
    )


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
    of_rows = tile["BM"] * ((21 if many else 17) + (4 if also else 0)) + tile["BN"] * 4
    shared_bytes = stages + of_rows + stages // (128 * STEP) * 8 + 8 * len(taps)
    shared_bytes = max(shared_bytes, _whole_bytes(tile))
    compares = _has_threshold(edge) and up == (1, 1) and tile["BN"] >= outputs
    more: tuple[Any, ...] = (np.uint64(0), np.uint64(0), np.float32(0))  # nothing to compare with
    if compares:
        more = (edge.marks.bits, edge.marks.changed, np.float32(edge.threshold))
    return Head(
        "conv_wgmma.cu",
        struct.pack("=4Q18iQ", *addresses, *numbers, *second),
        "conv",
        {
            "AT_ONCE": blocks_at_once(shared_bytes),
            "PIECE": piece,
            **({"STEP_TAPS": 1} if alike else {}),
            "MANY_TAPS": int(many),
            "COMPARE": int(compares),
            **({"ALSO": 1} if also else {}),
            **({} if up == (1, 1) else {"UP_H": up[0], "UP_W": up[1]}),
            **tile,
        },
        threads=2 * tile["BM"] + (128 if tile["BM"] == 64 else 0),
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


def _wgmma_tiles(steps: int, channels: int) -> dict[str, dict[str, int]]:
    """The macros of kernels/conv_wgmma.cu that are worth measuring for a sum of so many steps.

    Wide tiles are also small ones where few pixels changed, so that those alone are tried for few channels.
    """
    shapes, in_parts = [(128, 64, 3), (64, 64, 4), (64, 64, 6)], [(64, 64, 6)]
    if channels > 64:  # the third has registers for a map that is added
        shapes = [(128, 128, 3), (128, 64, 3), (128, 64, 4), (64, 64, 4), (64, 64, 6), (64, 128, 4)]
        in_parts = [(64, 64, 6), (64, 128, 6)]
    tiles = [(*shape, 1) for shape in shapes]
    tiles += [(*shape, parts) for parts in (2, 4) if steps >= 4 * parts for shape in in_parts]
    if steps >= 32:
        tiles.append((*in_parts[-1], 8))
    return {
        f"{bm}x{bn}x{stages}/{parts}": {
            "BM": bm,
            "BN": bn,
            "STAGES": stages,
            "SPLIT": parts,
        }
        for bm, bn, stages, parts in tiles
    }


def fits_whole(operator: Any, window: Window | None, source: Any) -> bool:
    """Whether kernels/whole.cuh can compute a convolution where all pixels are listed: windows whose neighbours share
    what they read, channels in whole steps."""
    if window is None or depth_of(source) * source.values.dtype.itemsize % STEP:
        return False
    return tuple(operator.weight.shape[2:]) == (3, 3) and (*window.stride, *window.dilation) == (1, 1, 1, 1)


def _whole_tiles(channels: int) -> dict[str, dict[str, int]]:
    """Macros of kernels/conv_wgmma.cu with kernels/whole.cuh for all pixels.

    Measured on an H100 (docs/performance.md): two rows a warpgroup read half of the weights, where registers hold them;
    all weights of 64 > 64 in shared memory leave room for one row, which is slower.
    """
    shape = {"BN": 64, "STAGES": 4, "EACH": 2, "SLOTS": 6}
    if channels > 64:
        shape = {"BN": 128, "STAGES": 3, "EACH": 1, "SLOTS": 4}
    return {f"128x{shape['BN']}x{shape['STAGES']}/1 whole": {"BM": 128, "SPLIT": 1, "WHOLE": 3, **shape}}


def _whole_bytes(tile: dict[str, int]) -> int:
    """Shared memory of kernels/whole.cuh."""
    if "WHOLE" not in tile:
        return 0
    around = tile["WHOLE"] - 1
    halo = (tile["BM"] // 64 * tile["EACH"] + around) * (64 + around) * STEP
    return -(-halo // 1024) * 1024 + tile["SLOTS"] * (tile["BN"] * STEP + 16)


def _has_threshold(edge: Any) -> bool:
    """One number for all channels."""
    return edge.threshold is not None and not isinstance(edge.threshold, Tensor)


def blocks_at_once(shared_bytes: int) -> int:
    return max(1, SHARED_BYTES // (shared_bytes + 1024))


def up_of(operator: Any) -> tuple[int, int]:
    """Rows and columns that each pixel becomes under a transposed convolution whose windows lie side by side.

    Such a one is a 1x1 convolution that makes all of them; elsewhere (1, 1).
    """
    if not _is_transposed(operator) or operator.groups > 1 or operator.weight.shape[1] % 8:
        return (1, 1)
    apart = operator.padding, operator.output_padding, operator.dilation
    up: tuple[int, int] = operator.stride
    return up if apart == ((0, 0), (0, 0), (1, 1)) and tuple(operator.weight.shape[2:]) == up else (1, 1)


def on_pixels(operator: ConvTranspose2d) -> Conv2d:
    """The 1x1 convolution whose outputs are those of a transposed one, tap by tap."""
    inputs, _, kh, kw = operator.weight.shape
    weight = operator.weight.permute(2, 3, 1, 0).reshape(-1, inputs, 1, 1)
    bias = None if operator.bias is None else operator.bias.repeat(kh * kw)
    return Conv2d(weight, bias, (1, 1), (0, 0), (1, 1), 1)


def fits_wgmma(operator: Any, source: Any, edge: Any) -> bool:
    _, _, kh, kw = operator.weight.shape
    return bool(
        torch.cuda.get_device_capability(edge.values.device) == (9, 0)
        and not _is_transposed(operator)
        and kh * kw <= MOST_TAPS
        and source.pitch * edge.values.dtype.itemsize % piece_of(source) == 0
    )


def adds_maps(first: Any, second: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels/conv_wgmma.cu computes first(x) + second(y) in one sum."""
    if device.type != "cuda" or not _may_round(dtype) or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    parts = first, second
    wide = all(pitch_of(part.weight.shape[1], dtype) * dtype.itemsize >= 16 for part in parts)
    on_pixels = second.weight.shape[2:] == (1, 1) and second.padding == (0, 0)
    # Each tap has a bit of 32, as have the second map and what lies outside.
    few_taps = first.weight[0, 0].numel() <= 30
    return wide and on_pixels and few_taps and all(part.groups == 1 for part in parts)


def piece_of(source: Any) -> int:
    """Bytes that a thread reads of a pixel at once."""
    return min(16, depth_of(source) * source.values.dtype.itemsize)


def depth_of(source: Any) -> int:
    """Values of a pixel that a sum reads; a map that is part of another has more from one pixel to the next."""
    return pitch_of(source.values.shape[1], source.values.dtype)


def pitch_of(channels: int, dtype: torch.dtype) -> int:
    """Values from one pixel to the next: whole vectors of 16 bytes, so that any of them can be read at once; four
    values where a frame has fewer channels."""
    if channels <= 4:
        return 4
    vector = max(1, 16 // dtype.itemsize)
    return -(-channels // vector) * vector


def steps_of(operator: Any, source: Any) -> int:
    """Steps of the sum over taps and channels."""
    kh, kw = operator.weight.shape[2:]
    return -(-kh * kw * depth_of(source) * source.values.dtype.itemsize // STEP)


def is_depthwise(operator: Any) -> bool:
    return not _is_transposed(operator) and bool(
        operator.groups == len(operator.weight) > 1 == operator.weight.shape[1]
    )


def _on_tensor_cores(operator: Any, edge: Any) -> bool:
    return bool(
        _may_round(edge.values.dtype)
        and operator.groups == 1
        and torch.cuda.get_device_capability(edge.values.device) >= (8, 0)
    )


def _may_round(dtype: torch.dtype) -> bool:
    """Tensor cores multiply it: a short type, or float32 where torch may take TF32 for it."""
    return dtype in (torch.float16, torch.bfloat16) or (
        dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    )


def _in_exact_tiles(operator: Any, edge: Any) -> bool:
    """Single precision as it is, by kernels/conv_tiles.cu without tensor cores."""
    return bool(
        edge.values.dtype == torch.float32
        and operator.groups == 1
        and torch.cuda.get_device_capability(edge.values.device) >= (8, 0)
    )


def _exact_tiles(edge: Any, steps: int) -> dict[str, dict[str, int]]:
    """Macros of kernels/conv_tiles.cu for it: tiles that three blocks of a multiprocessor hold without spilling."""
    warps = {"WARPS_M": 2, "WARPS_N": 2, "WARPS_K": 1, "EXACT": 1, "AT_ONCE": 3}
    clusters = torch.cuda.get_device_capability(edge.values.device) >= (9, 0)
    splits = [1, *(split for split in (4, 8) if clusters and steps >= 6 * split)]
    tiles = {
        f"exact 64x64/{split}": {"BM": 64, "BN": 64, "STAGES": 4, "SPLIT": split, **warps} for split in splits
    }
    return {**tiles, "exact 128x64/1": {"BM": 128, "BN": 64, "STAGES": 3, "SPLIT": 1, **warps}}


def _tile(edge: Any, steps: int) -> dict[str, int]:
    """The macros of kernels/conv_tiles.cu for an output and the steps of its sum.

    Measured on an H100 (ResNet-50, half and TF32, 1 to 100 % of the pixels): tiles of 64 x 64 are fastest until there
    are four times as many as run at a time, then 128 x 64, and 128 x 128 where the sums are long. Shares of a split sum
    want six steps. A multiprocessor holds two blocks but for the largest tile, which needs its registers; so would a
    split sum of 128 x 64.
    """
    n, channels, height, width = edge.values.shape
    pixels = n * height * width
    device = torch.cuda.get_device_properties(edge.values.device)
    split = 1
    while split < 8 and steps // (2 * split) >= 6 and device.major >= 9:
        split *= 2
    common = {"WARPS_K": 1, "SPLIT": split}
    if -(-pixels // 64) * -(-channels // 64) < 8 * device.multi_processor_count:
        return {"BM": 64, "BN": 64, "WARPS_M": 2, "WARPS_N": 2, "STAGES": 5, **common}
    if channels < 128 or steps < 16:
        return {"BM": 128, "BN": 64, "WARPS_M": 4, "WARPS_N": 2, "STAGES": 4, **common, "SPLIT": 1}
    return {"BM": 128, "BN": 128, "WARPS_M": 2, "WARPS_N": 4, "STAGES": 4, **common}


def _as_tf32(x: Tensor) -> Tensor:
    """Rounded to nearest as the device rounds the other factor (cvt.rna): ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _is_transposed(operator: Any) -> bool:
    return isinstance(operator, ConvTranspose2d)


def _weight_rows(operator: Any) -> Tensor:
    """(outputs, kh, kw, inputs of a group) of a convolution or a transposed one."""
    weight = operator.weight
    if not _is_transposed(operator):
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


def window_of(source: Any, window: Window | None) -> tuple[int, ...]:
    """pitch, H, W, kernel, stride, padding, dilation: as the kernels' structs have them."""
    height, width = source.values.shape[2:]
    if window is None:
        return (source.pitch, height, width, 1, 1, 1, 1, 0, 0, 1, 1)
    geometry = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return (source.pitch, height, width, *geometry)
