"""backends/cuda/convs.py: weights and tables are in the order that the kernels read them. Needs no GPU."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_cpu import edge_of
from torch import Tensor

from deltaconvert.backends.cuda import conv_kernels, convs, wgmma_kernels
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.reach import Window


def read_as_wgmma(
    head: conv_kernels.Head, source: SimpleNamespace, size: tuple[int, int], bn: int, other: Any = None
) -> Tensor:
    """What kernels/conv_wgmma.cu computes from a Head's bytes, pixel by pixel. other: a second map."""
    numbers = struct.unpack("=4Q18iQ", head.packed)[4:]
    pitch, height, width, sh, sw, ph, pw, kh, kw, dh, dw, steps, images, *second, _ = numbers
    also_pitch, also_height, also_width, also_sh, also_sw = second
    assert images == len(source.values)
    weight, bias, table = head.weights
    steps += steps % 2
    dtype = source.values.dtype
    pieces = source.memory.view(-1, head.macros["PIECE"] // dtype.itemsize)
    of_other = pieces if other is None else other.memory.view(-1, pieces.shape[1])
    taps = table.view(torch.int32).view(-1, 2).tolist()
    if head.macros.get("STEP_TAPS"):  # of each step; its pieces follow each other
        taps = [(offset + piece, bit) for offset, bit in taps for piece in range(128 // head.macros["PIECE"])]
    tiles = weight.view(-1, steps, bn, 8, 16 // dtype.itemsize)
    out = []
    for n in range(len(source.values)):
        for y in range(size[0]):
            for x in range(size[1]):
                top, left = y * sh - ph, x * sw - pw
                base = ((n * height + top) * width + left) * pitch
                also = ((n * also_height + y * also_sh) * also_width + x * also_sw) * also_pitch
                inside = int(other is not None) << kh * kw
                for i in range(kh):
                    for k in range(kw):
                        ok = 0 <= top + i * dh < height and 0 <= left + k * dw < width
                        inside |= ok << (i * kw + k)
                row = torch.stack(
                    [
                        torch.zeros_like(pieces[0])
                        if not inside >> bit & 1
                        else of_other[also + offset]
                        if bit == kh * kw
                        else pieces[base + offset]
                        for offset, bit in taps
                    ]
                ).view(steps, 8, -1)
                lies_at = torch.arange(8) ^ (torch.arange(bn).view(-1, 1) % 8)  # of chunk c of row r
                straight = tiles.gather(3, lies_at.view(1, 1, bn, 8, 1).expand(tiles.shape))
                out.append((straight.float() * row.float()[None, :, None]).sum((1, 3, 4)).flatten() + bias)
    return torch.stack(out).view(len(source.values), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "inputs, outputs, kernel, stride, padding, dilation",
    [
        (64, 40, (3, 3), (1, 1), (1, 1), (1, 1)),
        (24, 70, (3, 2), (2, 1), (1, 0), (1, 2)),
        (136, 8, (1, 1), (2, 2), (0, 0), (1, 1)),
        (8, 8, (5, 5), (1, 1), (4, 4), (2, 2)),
        (3, 24, (7, 7), (2, 2), (3, 3), (1, 1)),
    ],
)
def test_wgmma_reads_the_convolution(dtype, inputs, outputs, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    x = torch.randn(2, inputs, 5, 6)
    weight = torch.randn(outputs, inputs, *kernel)
    bias = torch.randn(outputs)
    x, weight = x.bfloat16().to(dtype), weight.bfloat16().to(dtype)  # exact in every type
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation).float()
    size = tuple(expected.shape[2:])
    window = Window(kernel, stride, padding, dilation, (5, 6), size)
    operator = Conv2d(weight, bias, stride, padding, dilation, 1)
    source = edge_of(x)
    tile = {"BM": 64, "BN": 64, "STAGES": 3, "SPLIT": 1}
    head = wgmma_kernels.by_wgmma(operator, window, source, SimpleNamespace(values=x, threshold=None), tile)
    out = read_as_wgmma(head, source, size, 64)[:, :outputs]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def read_by_taps(head: conv_kernels.Head, source: SimpleNamespace, size: tuple[int, int]) -> Tensor:
    """What kernels/conv_exact.cu and conv_tiles.cu compute, by kernels/taps.cuh."""
    _, height, width, sh, sw, ph, pw, steps = struct.unpack("=4Q8i", head.packed)[4:]
    weight, bias, table = head.weights
    taps = [struct.unpack("=2hi", table[at : at + 8].numpy().tobytes()) for at in range(0, len(table), 8)]
    values = steps * 32 // len(taps)  # of a piece
    transposed = "TRANSPOSE" in head.macros
    # 32 channels: half of a step, pair, lane; step, vector, value, channel of the pair.
    if head.source == "conv_exact.cu":
        weight = (
            weight.view(-1, 2, 2, 8, steps, 8, 2, 2).permute(0, 3, 2, 7, 4, 1, 5, 6).reshape(weight.shape)
        )

    def piece(image: Tensor, y: int, x: int, channel: int) -> Tensor:
        inside = channel >= 0 and not (transposed and (y % sh or x % sw))
        y, x = (y // sh, x // sw) if transposed else (y, x)
        if not inside or not (0 <= y < height and 0 <= x < width):
            return image.new_zeros(values)
        return image[y, x, channel // 4 :][:values]

    out = []
    for image in source.memory:
        for y in range(size[0]):
            for x in range(size[1]):
                top, left = (y + ph, x + pw) if transposed else (y * sh - ph, x * sw - pw)
                row = torch.cat([piece(image, top + dy, left + dx, channel) for dy, dx, channel in taps])
                out.append(weight @ row + bias)
    return torch.stack(out).view(len(source.values), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("tile", ["exact", "mma"])
@pytest.mark.parametrize(
    "inputs, outputs, kernel, stride, padding, transposed",
    [
        (24, 70, (3, 2), (2, 1), (1, 0), False),
        (136, 8, (1, 1), (2, 2), (0, 0), False),
        (3, 24, (7, 7), (2, 2), (3, 3), False),
        (5, 40, (4, 4), (2, 2), (1, 1), True),
        (8, 3, (3, 2), (1, 3), (0, 0), True),
    ],
)
def test_tiles_read_the_convolution(tile, inputs, outputs, kernel, stride, padding, transposed):
    torch.manual_seed(0)
    x = torch.randn(2, inputs, 5, 6).bfloat16().float()  # exact in TF32
    shape = (inputs, outputs, *kernel) if transposed else (outputs, inputs, *kernel)
    weight, bias = torch.randn(shape).bfloat16().float(), torch.randn(outputs)
    operator: Any = Conv2d(weight, bias, stride, padding, (1, 1), 1)
    if transposed:
        operator = ConvTranspose2d(weight, bias, stride, padding, (0, 0), 1, (1, 1))
    expected = operator(x)
    size = tuple(expected.shape[2:])
    window = Window(kernel, stride, padding, (1, 1), (5, 6), size)
    source, edge = edge_of(x), SimpleNamespace(values=expected, threshold=None)
    if tile == "exact":
        head = conv_kernels.by_exact(operator, window, source, edge, {"BM": 64, "BN": 64, "SPLIT": 1})
    else:
        sides = {"BM": 64, "BN": 64, "WARPS_M": 2, "WARPS_N": 2, "WARPS_K": 1}
        head = conv_kernels.by_tiles(operator, window, source, edge, {**sides, "STAGES": 4, "SPLIT": 1})
    assert head.channels == outputs
    torch.testing.assert_close(read_by_taps(head, source, size)[:, :outputs], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "inputs, kernel, others, stride",
    [(64, 1, 64, 1), (64, 1, 128, 2), (24, 3, 8, 2), (64, 3, 40, 1)],
)
def test_wgmma_reads_both_maps_of_a_sum(dtype, inputs, kernel, others, stride):
    torch.manual_seed(0)
    size = (5, 6)
    sources, parts, expected = [], [], torch.zeros(())
    for channels, side, step in ((inputs, kernel, 1), (others, 1, stride)):
        x = torch.randn(2, channels, *((length - 1) * step + 1 for length in size)).bfloat16().to(dtype)
        weight = torch.randn(40, channels, side, side).bfloat16().to(dtype)
        bias = torch.randn(40)
        expected = expected + F.conv2d(x.double(), weight.double(), bias.double(), step, side // 2).float()
        sources.append(edge_of(x))
        parts.append(Conv2d(weight, bias, (step, step), (side // 2,) * 2, (1, 1), 1))
    window = Window((kernel,) * 2, (1, 1), (kernel // 2,) * 2, (1, 1), size, size)
    tile = {"BM": 64, "BN": 64, "STAGES": 3, "SPLIT": 1}
    edge = SimpleNamespace(values=sources[0].values, threshold=None)
    head = wgmma_kernels.by_wgmma(parts[0], window, sources[0], edge, tile, also=(parts[1], sources[1]))
    out = read_as_wgmma(head, sources[0], size, 64, sources[1])[:, :40]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 1)])
def test_windows_side_by_side_are_products_of_pixels(kernel):
    x, weight, bias = torch.randn(2, 5, 4, 3), torch.randn(5, 16, *kernel), torch.randn(16)
    operator = ConvTranspose2d(weight, bias, kernel, (0, 0), (0, 0), 1, (1, 1))
    assert convs.up_of(operator) == kernel
    made = convs.on_pixels(operator)(x).unflatten(1, (*kernel, 16))
    laid_out = made.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
    torch.testing.assert_close(laid_out, operator(x))


@pytest.mark.parametrize(
    "kernel, stride, padding, more, groups",
    [(3, 2, 0, 0, 1), (2, 2, 1, 0, 1), (2, 2, 0, 1, 1), (2, 2, 0, 0, 2)],
)
def test_other_transposed_ones_are_not(kernel, stride, padding, more, groups):
    parts = (stride,) * 2, (padding,) * 2, (more,) * 2, groups, (1, 1)
    operator = ConvTranspose2d(torch.randn(16, 16 // groups, kernel, kernel), None, *parts)
    assert convs.up_of(operator) == (1, 1)


@pytest.mark.parametrize("size", [(1080, 1920), (1080, 126), (68, 120), (96, 72), (12, 9)])
@pytest.mark.parametrize("channels", [16, 64, 72, 512])
def test_two_blocks_of_whole_maps_fit_a_multiprocessor(channels, size):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), size, size)
    source = SimpleNamespace(values=torch.empty(1, 64, *size, dtype=torch.half, device="meta"))
    tiles = convs._whole_tiles(channels, window, source)
    narrow = size[1] <= 126
    assert {bool(tile["FLAT"]) for tile in tiles.values()} == (
        {narrow} if channels <= 64 or not narrow else set()
    )
    for tile in tiles.values():
        assert conv_kernels.blocks_at_once(wgmma_kernels.whole_bytes(tile)) >= 2
