"""Which kernel computes an operator, and its parameters: `struct Head` of kernels/*.cu, packed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda.kernels import TYPES
from deltaconvert.backends.cuda.means import BoxMeans, lanes_of, packed_mean
from deltaconvert.backends.cuda.tail import NoKernel, Tail
from deltaconvert.ops.base import Operator
from deltaconvert.ops.channels import Channels, Concat
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.places import Places
from deltaconvert.ops.pool import AvgPool2d, MaxPool2d
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate
from deltaconvert.reach import Pixel, Sources, Window

MOST_PARTS = 16  # of kernels/pointwise.cu
STEP = 128  # bytes of kernels/conv_tiles.cu
SHARED_BYTES = 220 << 10


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


def head_of(
    operator: Operator, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any
) -> tuple[Head, Tail]:
    """The kernel for an operator with all that is fused behind it; NoKernel if there is none."""
    n, channels, height, width = edge.values.shape
    dtype, size = edge.values.dtype, (height, width)
    if dtype not in TYPES or inputs[0].values.dtype != dtype:
        raise NoKernel("another type")
    if n * height * width * -(-channels // 2) >= 2**32:
        raise NoKernel("a map of more than 32 bits")
    tail = Tail(channels, dtype, edge.values.device)
    first, others = operator, list(inputs)
    stages: list[tuple[Operator, int, int]] = []
    own = len(inputs)
    if isinstance(operator, Fused):
        first, own = operator.head, operator.head_inputs
        stages = list(zip(list(operator.stages)[1:], operator.counts, operator.slots, strict=True))  # type: ignore[arg-type]
    mine, others = others[:own], others[own:]
    if first.elementwise:
        head = _same_map(mine, edge, tail, first)
    else:
        head = _PACKERS[type(first)](first, reaches, mine, edge)
    if head.channels != channels:
        raise NoKernel("an elementwise operator that makes more channels")
    for stage, count, slot in stages:
        values = [tail.operand(source, size) for source in others[:count]]
        others = others[count:]
        tail.then(stage, [*values[:slot], "v", *values[slot:]])
    return head, tail


def _same_map(inputs: Sequence[Any], edge: Any, tail: Tail, stage: Operator) -> Head:
    """An elementwise operator: `v` is one of its inputs, the others are operands."""
    whole = [i for i, source in enumerate(inputs) if source.values.shape == edge.values.shape]
    if not whole:
        raise NoKernel("no input of the output's size")
    size = tuple(edge.values.shape[2:])
    values = ["v" if i == whole[0] else tail.operand(source, size) for i, source in enumerate(inputs)]  # type: ignore[arg-type]
    tail.then(stage, values)
    return _parts([(inputs[whole[0]], 0, 0, 1)], edge.values.shape[1])


def _parts(parts: Sequence[tuple[Any, int, int, int]], channels: int) -> Head:
    """parts: (map, first output channel, first channel, step)."""
    if len(parts) > MOST_PARTS:
        raise NoKernel(f"more than {MOST_PARTS} maps")
    packed = b"".join(
        struct.pack("=Q4i", edge.values.data_ptr(), edge.pitch, *numbers) for edge, *numbers in parts
    )
    return Head(
        "pointwise.cu",
        packed.ljust(MOST_PARTS * 24, b"\0") + struct.pack("=2i", len(parts), 0),
        channels=channels,
    )


def _concat(operator: Concat, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    parts, first = [], 0
    for source in inputs:
        parts.append((source, first, 0, 1))
        first += source.values.shape[1]
    return _parts(parts, first)


def _channels(operator: Channels, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    taken = range(source.values.shape[1])[operator.start : operator.stop : operator.step]
    return _parts([(source, 0, taken.start, taken.step)], len(taken))


def _pool(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    average = isinstance(operator, AvgPool2d)
    divisor = (operator.divisor_override or 0) if average else 0
    numbers = (*_window(source, reaches[0]), average, average and operator.count_include_pad, divisor, 0)
    return Head(
        "pool.cu", struct.pack("=Q15i", source.values.data_ptr(), *numbers), channels=source.values.shape[1]
    )


def _resample(operator: Interpolate, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    weights = operator.weights(reaches[0], tuple(source.values.shape), torch.float64)
    return _weighted(source, edge, reaches[0], weights, 0.0)


def _mean(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    channels = source.values.shape[1]
    lanes = {"LANES": lanes_of(channels, edge.values.dtype)}
    return Head("mean.cu", packed_mean(operator, source), "means", lanes, channels=channels)


def _adaptive(operator: AdaptivePool2d, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    if operator.kind != "avg":
        raise NoKernel("the largest of boxes of several sizes")
    if not isinstance(reaches[0], Sources):
        return _mean(operator, reaches, inputs, edge)
    weights = [_averaging(table) for table in (reaches[0].rows, reaches[0].cols)]
    return _weighted(inputs[0], edge, reaches[0], weights, 0.0)


def _averaging(table: Tensor) -> Tensor:
    """What each row of a box counts for; one that a table repeats, where boxes differ in size, counts once."""
    weights = torch.ones(table.shape, dtype=torch.float64)
    weights[:, 1:][table[:, 1:] == table[:, :1]] = 0
    return weights / weights.sum(1, keepdim=True)


def _shuffle(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    _, channels, height, width = source.values.shape
    factors = (operator.factor, 1) if isinstance(operator, PixelShuffle) else (1, operator.factor)
    numbers = (source.pitch, height, width, *factors, 0)
    outputs = channels * factors[1] ** 2 // factors[0] ** 2
    return Head("shuffle.cu", struct.pack("=Q6i", source.values.data_ptr(), *numbers), channels=outputs)


def _copied(operator: Places, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    channels = torch.arange(source.values.shape[1]).view(1, -1)
    if not torch.equal(operator.copied(channels), channels):
        raise NoKernel("it moves channels as well")
    if isinstance(reaches[0], Pixel):
        return _parts([(source, 0, 0, 1)], source.values.shape[1])
    tables = reaches[0].rows, reaches[0].cols
    ones = (torch.ones(table.shape, dtype=torch.float64) for table in tables)
    return _weighted(source, edge, reaches[0], tuple(ones), operator.fill)


def _weighted(source: Any, edge: Any, reach: Sources, weights: Sequence[Tensor], fill: float) -> Head:
    """Sums over the rows and columns of `reach`; a place outside the map holds `fill`."""
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    device = edge.values.device
    rows, cols = (table.to(device, torch.int32).contiguous() for table in (reach.rows, reach.cols))
    row_weights, col_weights = (part.to(device, number).contiguous() for part in weights)
    addresses = [t.data_ptr() for t in (source.values, rows, cols, row_weights, col_weights)]
    numbers = (source.pitch, *source.values.shape[2:], rows.shape[1], cols.shape[1], 0)
    return Head(
        "resample.cu",
        struct.pack("=5Qd6i", *addresses, fill, *numbers),
        weights=(rows, cols, row_weights, col_weights),
        channels=source.values.shape[1],
    )


def _conv(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    window = reaches[0] if isinstance(reaches[0], Window) else None
    if edge.values.device.type == "cuda" and _on_tensor_cores(operator, edge):
        return _conv_tiles(operator, window, source, edge)
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    weight = _weight_rows(operator).to(number)  # outputs, kh, kw, inputs
    outputs, kh, kw, per_group = weight.shape
    pitch = -(-outputs // 8) * 8
    padded = weight.new_zeros(kh, kw, per_group, pitch)
    padded[..., :outputs] = weight.permute(1, 2, 3, 0)
    bias = _padded_bias(operator, pitch, number, padded.device)
    addresses = [t.data_ptr() for t in (source.values, padded, bias)]
    at, *geometry = _window(source, window)
    numbers = (at, pitch, *geometry, per_group, outputs // operator.groups, _is_transposed(operator), 0)
    return Head(
        "conv.cu", struct.pack("=3Q16i", *addresses, *numbers), weights=(padded, bias), channels=outputs
    )


def _on_tensor_cores(operator: Any, edge: Any) -> bool:
    dtype = edge.values.dtype
    if dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return False
    return bool(
        dtype in (torch.float16, torch.bfloat16, torch.float32)
        and operator.groups == 1
        and torch.cuda.get_device_capability(edge.values.device) >= (8, 0)
    )


def _conv_tiles(operator: Any, window: Window | None, source: Any, edge: Any) -> Head:
    dtype = edge.values.dtype
    weight = _weight_rows(operator).float()
    outputs, kh, kw, channels = weight.shape
    pixel = source.pitch * dtype.itemsize
    piece = min(16, pixel)
    pieces = kh * kw * pixel // piece
    steps = -(-pieces * piece // STEP)
    tile = _tile(edge, steps)
    row = steps * STEP // dtype.itemsize
    rows = -(-outputs // tile["BN"]) * tile["BN"]
    spaced = weight.new_zeros(outputs, kh, kw, source.pitch)
    spaced[..., :channels] = weight
    packed = weight.new_zeros(rows, row)
    packed[:outputs, : spaced[0].numel()] = spaced.flatten(1)
    packed = _as_tf32(packed) if dtype == torch.float32 else packed.to(dtype)
    bias = _padded_bias(operator, rows, torch.float32, packed.device)
    transposed = _is_transposed(operator)
    _, height, width, _, _, sh, sw, ph, pw, dh, dw = _window(source, window)
    sign = -1 if transposed else 1
    taps = []
    for place in range(steps * STEP // piece):
        tap, part = divmod(place, pixel // piece)
        y, x = divmod(tap, kw)
        inside = tap < kh * kw
        taps.append(
            struct.pack(
                "=2hi",
                sign * y * dh if inside else 0,
                sign * x * dw if inside else 0,
                part * piece if inside else -1,
            )
        )
    table = torch.tensor(list(b"".join(taps)), dtype=torch.uint8, device=packed.device)
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
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


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


def _window(source: Any, window: Window | None) -> tuple[int, ...]:
    """pitch, H, W, kernel, stride, padding, dilation: as the kernels' structs have them."""
    height, width = source.values.shape[2:]
    if window is None:
        return (source.pitch, height, width, 1, 1, 1, 1, 0, 0, 1, 1)
    geometry = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return (source.pitch, height, width, *geometry)


class _Packers(dict[type, Any]):
    def __missing__(self, kind: type) -> Any:
        for known, packer in self.items():
            if issubclass(kind, known):
                return packer
        raise NoKernel(kind.__name__)


_PACKERS = _Packers(
    {
        Concat: _concat,
        Channels: _channels,
        MaxPool2d: _pool,
        AvgPool2d: _pool,
        Interpolate: _resample,
        Places: _copied,
        PixelShuffle: _shuffle,
        PixelUnshuffle: _shuffle,
        BoxMeans: _mean,
        AdaptivePool2d: _adaptive,
        Conv2d: _conv,
        ConvTranspose2d: _conv,
    }
)
