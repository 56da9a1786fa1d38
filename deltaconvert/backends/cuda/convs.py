"""Convolutions: which kernels and tiles can compute one, and which of them is fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from deltaconvert.backends.cuda.conv_kernels import (
    SHARED_BYTES,
    Head,
    by_exact,
    by_pixel,
    by_tiles,
    exact_bytes,
    has_threshold,
)
from deltaconvert.backends.cuda.depthwise import is_depthwise, ways_by_channel
from deltaconvert.backends.cuda.layout import (
    STEP,
    depth_of,
    is_transposed,
    piece_of,
    pitch_of,
    steps_of,
    window_of,
)
from deltaconvert.backends.cuda.octets import fits_octets
from deltaconvert.backends.cuda.tail import NoKernel, Tail
from deltaconvert.backends.cuda.wgmma_kernels import by_wgmma, stay_bytes
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.linear import MapLinear
from deltaconvert.reach import Pixel, Window

MOST_TAPS = 63  # of kernels/conv_wgmma.cu


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
        ways = ways_by_channel(*parts, on_gpu and _multiplies(edge))
    elif in_tiles:
        ways = candidates(*parts, also)
    else:
        return by_pixel(*parts)
    if not on_gpu:
        return next(iter(ways.values()))()
    shapes = tuple(source.values.shape), tuple(operator.weight.shape)
    compared = " compared" if has_threshold(edge) else ""
    layer = f"{edge.values.dtype} {shapes} {window_of(source, window)} {tail.macros()}{compared}"
    if also is not None:
        layer += f" and {tuple(also[1].values.shape)} {also[0].stride}"
    if not _on_tensor_cores(operator, edge):
        layer = f"exact {layer}"  # chosen apart from the same layer in TF32
    best: Head = tuner.best(layer, ways, inputs, edge, tail)
    return best


def linear(operator: MapLinear, inputs: Sequence[Any], edge: Any, tuner: Any, tail: Tail) -> Head:
    """A linear layer on maps of one pixel is a 1x1 convolution. On larger maps torch's matrix product is faster."""
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
        tiles = exact_tiles(edge, steps_of(operator, source))
        return {name: partial(by_exact, operator, window, source, edge, tile) for name, tile in tiles.items()}
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
    if also is None and up == (1, 1) and channels <= 64 and edge.values.dtype.itemsize == 2:
        octets = fits_octets(operator, window, source)
        tiles = tiles | _stay_tiles(steps, 32 if channels <= 32 else 64, octets, has_threshold(edge))
    if has_threshold(edge) and up == (1, 1) and channels <= 128:
        # A tile that holds all channels of its pixels compares them itself.
        tiles = {name: tile for name, tile in tiles.items() if tile["BN"] >= channels}
    elif also is None and window is not None and fits_whole(operator, window, source):
        tiles = tiles | _whole_tiles(channels, window, source)
    rest: dict[str, Any] = {"up": up, "also": also}
    return {
        name: partial(by_wgmma, operator, window, source, edge, tile, **rest) for name, tile in tiles.items()
    }


def _wgmma_tiles(steps: int, channels: int) -> dict[str, dict[str, int]]:
    """The macros of kernels/conv_wgmma.cu that are worth measuring for a sum of so many steps.

    Wide tiles turn into small ones where few pixels changed, so small ones by themselves are tried for few channels
    only."""
    shapes, in_parts = [(128, 64, 3), (64, 64, 4), (64, 64, 6)], [(64, 64, 6)]
    if channels <= 32:
        shapes = [(128, 32, 3), (64, 32, 4), (64, 32, 6)]
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
            **({"SMALL": 0} if bn < 64 else {}),
        }
        for bm, bn, stages, parts in tiles
    }


def _stay_tiles(steps: int, width: int, in_octets: bool, compares: bool) -> dict[str, dict[str, int]]:
    """The macros of kernels/conv_wgmma.cu with kernels/stay.cuh, if the weights leave room for the steps of a tile,
    with and without octets (`octets.py`).

    Measured on an H100 (64 > 64 channels, all pixels, in octets): three gangs take 2484 us where two take 2586, and
    3912 for 3236 where they compare, for want of registers.
    """
    tiles = {}
    for gangs, at_once in ((2 if compares else 3, 1), (2, 2)):
        for slots in range(9, min(steps, 5) - 1, -1):
            tile = {"BM": 64, "BN": width, "STAGES": slots, "SPLIT": 1, "STAY": gangs}
            if at_once * (stay_bytes(tile, steps, True) + 1024) <= SHARED_BYTES:
                name = f"64x{width}x{slots}/1 stays {gangs}"
                tiles[name] = tile
                if in_octets:
                    tiles[f"{name} octets"] = {**tile, "OCTETS": 1}
                break
    return tiles


def fits_whole(operator: Any, window: Window, source: Any) -> bool:
    """Whether kernels/whole.cuh can compute a convolution where all pixels are listed: its windows overlap, and
    channels are whole steps or half of one."""
    pixel = depth_of(source) * source.values.dtype.itemsize
    if pixel % STEP and pixel != STEP // 2:
        return False
    return tuple(operator.weight.shape[2:]) == (3, 3) and (*window.stride, *window.dilation) == (1, 1, 1, 1)


def _whole_tiles(channels: int, window: Window, source: Any) -> dict[str, dict[str, int]]:
    """Macros of kernels/conv_wgmma.cu with kernels/whole.cuh for all pixels, and large or small tiles for fewer.

    Measured on an H100 (docs/performance_tried.md): two rows a warpgroup read half of the weights, where registers
    hold them; all weights of 64 > 64 in shared memory leave room for one row, which is slower. Narrow maps of more
    channels are small, and gathered rows are faster.
    """
    flat = _flat(window, source)
    if flat and channels > 64:
        return {}
    width, of_all, shapes = 128, {"EACH": 1, "SLOTS": 4}, [(128, 3), (64, 4)]
    if channels <= 64:
        width, of_all, shapes = 64, {"EACH": 2, "SLOTS": 6}, [(128, 4), (64, 6)]
    if channels <= 32:
        width, of_all, shapes = 32, {"EACH": 2, "SLOTS": 9, "SMALL": 0}, [(64, 6)]
    of_all |= {"FLAT": flat, "PART": min(STEP, depth_of(source) * source.values.dtype.itemsize)}
    return {
        f"{bm}x{width}x{stages}/1 whole": {
            "BM": bm,
            "BN": width,
            "STAGES": stages,
            "SPLIT": 1,
            "WHOLE": 3,
            **of_all,
        }
        for bm, stages in shapes
    }


def _flat(window: Window, source: Any) -> int:
    """FLAT of kernels/whole.cuh, if rows of 64 pixels would compute more than consecutive pixels do."""
    height, width = source.values.shape[2:]
    in_rows = -(-height // 2) * 2 * -(-width // 64) * 64
    flat = window.padding == (1, 1) and width <= 126 and (height + 1) * (width + 1) < in_rows
    return width + 1 if flat else 0


def up_of(operator: Any) -> tuple[int, int]:
    """Rows and columns that each pixel becomes under a transposed convolution whose windows lie side by side.

    Such a convolution is a 1x1 convolution that makes all of these. (1, 1) for any other.
    """
    if not is_transposed(operator) or operator.groups > 1 or operator.weight.shape[1] % 8:
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
        and not is_transposed(operator)
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
    # Of 32 bits, one for each tap, one for the second map and one for pixels outside.
    few_taps = first.weight[0, 0].numel() <= 30
    return wide and on_pixels and few_taps and all(part.groups == 1 for part in parts)


def _on_tensor_cores(operator: Any, edge: Any) -> bool:
    return bool(_may_round(edge.values.dtype) and operator.groups == 1 and _multiplies(edge))


def _multiplies(edge: Any) -> bool:
    """The device has tensor cores that our kernels can use."""
    return torch.cuda.get_device_capability(edge.values.device) >= (8, 0)


def _may_round(dtype: torch.dtype) -> bool:
    """Tensor cores may multiply it: a short type, or float32 where torch allows TF32."""
    return dtype in (torch.float16, torch.bfloat16) or (
        dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    )


def _in_exact_tiles(operator: Any, edge: Any) -> bool:
    """Whether kernels/conv_exact.cu computes it, in strict single precision."""
    return bool(
        edge.values.dtype == torch.float32
        and operator.groups == 1
        and torch.cuda.get_device_capability(edge.values.device) >= (8, 0)
    )


def exact_tiles(edge: Any, steps: int) -> dict[str, dict[str, int]]:
    """Macros of kernels/conv_exact.cu that are worth measuring for a sum of so many steps."""
    device = torch.cuda.get_device_properties(edge.values.device)
    parts = [1, *(parts for parts in (2, 4, 8) if device.major >= 9 and steps >= 4 * parts)]
    tiles = {f"64x64/{split}": {"BM": 64, "BN": 64, "SMALL": 0, "SPLIT": split} for split in parts}
    for split in parts[:2]:
        tiles[f"128x64/{split}"] = {"BM": 128, "BN": 64, "ACROSS": 1, "SPLIT": split}
    if len(edge.values[0]) > 64:
        tiles["128x128/1"] = {"BM": 128, "BN": 128, "SPLIT": 1}
    room = getattr(device, "shared_memory_per_block_optin", 99 << 10)
    return {name: tile for name, tile in tiles.items() if exact_bytes(tile) <= room}


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
