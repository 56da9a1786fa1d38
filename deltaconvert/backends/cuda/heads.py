"""Which kernel computes an operator, and its parameters: `struct Head` of kernels/*.cu, packed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda import norms
from deltaconvert.backends.cuda.behind import both
from deltaconvert.backends.cuda.conv_kernels import Head
from deltaconvert.backends.cuda.convs import conv, linear
from deltaconvert.backends.cuda.kernels import TYPES
from deltaconvert.backends.cuda.layout import window_of
from deltaconvert.backends.cuda.means import BoxMeans, BoxMoments, lanes_of, packed_mean
from deltaconvert.backends.cuda.norms import makes_places
from deltaconvert.backends.cuda.tail import NoKernel, Tail
from deltaconvert.ops.base import Operator
from deltaconvert.ops.channels import ChannelIndex, Channels, ChannelShuffle, Concat
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.group_norm import Normalise, Statistics
from deltaconvert.ops.layer_norm import ChannelNorm
from deltaconvert.ops.linear import MapLinear
from deltaconvert.ops.over_channels import OverChannels
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.places import Places
from deltaconvert.ops.pool import AvgPool2d, LpPool2d, MaxPool2d
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate
from deltaconvert.reach import Sources

MOST_PARTS = 16  # of kernels/pointwise.cu
UNROLLED_TAPS = 16  # of kernels/pool.cu


def head_and_tail(
    operator: Operator, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any, tuner: Any
) -> tuple[Head, Tail]:
    """The kernel for an operator with all that is fused behind it; NoKernel if there is none.

    tuner: backends/cuda/tuning.py, for operators that several kernels compute.
    """
    n, channels, height, width = edge.values.shape
    if not _types_fit(operator, inputs[0], edge):
        raise NoKernel("another type")
    if n * height * width * -(-channels // 2) >= 2**32:
        raise NoKernel("a map of more than 32 bits")
    first, own, stages = _stages_of(operator, len(inputs))
    if stages and makes_places(first):
        raise NoKernel("places of channels with something fused behind them")
    at = next((i for i, (stage, _, _) in enumerate(stages) if isinstance(stage, (Conv2d, ConvSum))), -1)
    inner, behind = stages[: at + 1], stages[at + 1 :]  # up to a second convolution, and the rest
    read = own + sum(count for _, count, _ in inner)
    mine, others = inputs[:read], inputs[read:]
    tail = Tail(channels, edge.values.dtype, edge.values.device)
    on_same_map = first.elementwise and not inner and not isinstance(first, Normalise)
    if on_same_map:
        head = _same_map(mine, edge, tail, first)
    for stage, count, slot in behind:
        values = [tail.operand(source, (height, width)) for source in others[:count]]
        others = others[count:]
        tail.then(stage, [*values[:slot], "v", *values[slot:]])
    if not on_same_map:
        head = _reading(first, inner, reaches, mine, edge, tuner, tail)
    if head.channels != channels:
        raise NoKernel("an elementwise operator that makes more channels")
    return head, tail


def _stages_of(operator: Operator, inputs: int) -> tuple[Operator, int, list[tuple[Operator, int, int]]]:
    """(the first operator, how many inputs it has, (operator, further inputs, slot) for each operator behind it)."""
    if not isinstance(operator, Fused):
        return operator, inputs, []
    behind = list(operator.stages)[1:]
    stages = list(zip(behind, operator.counts, operator.slots, strict=True))
    return operator.head, operator.head_inputs, stages  # type: ignore[return-value]


def _reading(
    first: Operator,
    inner: Sequence[tuple[Operator, int, int]],
    reaches: Sequence[Any],
    inputs: Sequence[Any],
    edge: Any,
    tuner: Any,
    tail: Tail,
) -> Head:
    """The kernel of an operator that reads more than its own pixel. inner: the operators up to a second convolution."""
    if inner:
        assert isinstance(first, Conv2d)
        return both(inner, first, reaches[0], inputs, edge)
    if isinstance(first, (Conv2d, ConvTranspose2d, ConvSum)):
        return conv(first, reaches, inputs, edge, tuner, tail)
    if isinstance(first, MapLinear):
        return linear(first, inputs, edge, tuner, tail)
    return _PACKERS[type(first)](first, reaches, inputs, edge)


def _types_fit(operator: Operator, source: Any, edge: Any) -> bool:
    """A kernel writes the type that it reads; exceptions are places of channels, and moments, which are more exact."""
    types = source.values.dtype, edge.values.dtype
    if makes_places(operator):
        return types[0] in TYPES and edge.threshold is None
    return types[0] in TYPES and types[1] in TYPES and (types[0] == types[1] or _of_moments(operator))


def _of_moments(operator: Any) -> bool:
    return isinstance(operator, BoxMoments | Statistics)


def _same_map(inputs: Sequence[Any], edge: Any, tail: Tail, stage: Operator) -> Head:
    """An elementwise operator without one before it: `v` is one of its inputs, the others are operands."""
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
    average = not isinstance(operator, MaxPool2d)
    divisor = getattr(operator, "divisor_override", None) or 0
    numbers = (*window_of(source, reaches[0]), getattr(operator, "count_include_pad", False), divisor)
    kh, kw = reaches[0].kernel
    return Head(
        "pool.cu",
        struct.pack("=Q13i4x", source.values.data_ptr(), *numbers),
        macros={
            "AVERAGE": int(average),
            "NORM": getattr(operator, "norm", 0),
            **({"KH": kh, "KW": kw} if kh * kw <= UNROLLED_TAPS else {}),
        },
        channels=source.values.shape[1],
    )


def _resample(operator: Interpolate, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    if reaches[0].single and operator.mode.startswith("nearest"):
        return _copied(operator, reaches, inputs, edge)
    weights = operator.weights(reaches[0], tuple(source.values.shape), torch.float64)
    return _weighted(source, edge, reaches[0], weights)


def _mean(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    channels = source.values.shape[1]
    boxes = None if source.of_boxes is None else source.values[0, 0].numel()
    macros = {"LANES": lanes_of(channels, edge.values.dtype, boxes), "LARGEST": int(operator.kind == "max")}
    return Head("mean.cu", packed_mean(operator, source), "means", macros, channels=channels)


def _adaptive(operator: AdaptivePool2d, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    if not isinstance(reaches[0], Sources):
        return _mean(operator, reaches, inputs, edge)
    weights = [_averaging(table) for table in (reaches[0].rows, reaches[0].cols)]
    return _weighted(inputs[0], edge, reaches[0], weights, LARGEST=int(operator.kind == "max"))


def _averaging(table: Tensor) -> Tensor:
    """The weight of each row of a box. A row that the table repeats, because boxes differ in size, counts once."""
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


def _copied(operator: Any, reaches: Sequence[Any], inputs: Sequence[Any], edge: Any) -> Head:
    """Places, nearest interpolation, and operators on channels alone."""
    (source,) = inputs
    device, reach, size = edge.values.device, reaches[0], edge.values.shape[2:]
    tables = (reach.rows, reach.cols) if isinstance(reach, Sources) else map(torch.arange, size)
    rows, cols = (table.flatten().to(device, torch.int32) for table in tables)
    channels = _channels_of(operator, source.values.shape[1], device)
    reordered = channels.tolist() != list(range(source.values.shape[1]))
    padded = torch.full((-(-len(channels) // 8) * 8,), -1, dtype=torch.int32, device=device)
    padded[: len(channels)] = channels
    kept = (rows, cols, padded)
    addresses = [t.data_ptr() for t in (source.values, *kept)]
    fill, numbers = getattr(operator, "fill", 0.0), (source.pitch, *source.values.shape[2:], 0)
    return Head(
        "copies.cu",
        struct.pack("=4Qd4i", *addresses, fill, *numbers),
        macros={"REORDERED": int(reordered)},
        weights=kept,
        channels=len(channels),
    )


def _channels_of(operator: Any, channels: int, device: torch.device) -> Tensor:
    """int64 (C'): the channels that an operator copies, in order; -1 for a constant. Found by two runs of the
    operator."""
    copy = operator.copied if operator.copies else lambda x: operator(x[..., None, None])[..., 0, 0]
    places = torch.arange(channels, dtype=torch.float64, device=device).view(1, -1)
    once, again = copy(places), copy(places + channels)
    return torch.where(again == once + channels, once, -1).flatten().long()


def _weighted(source: Any, edge: Any, reach: Sources, weights: Sequence[Tensor], **macros: int) -> Head:
    """Sums over the rows and columns of `reach`."""
    number = torch.float64 if edge.values.dtype == torch.float64 else torch.float32
    device = edge.values.device
    rows, cols = (table.to(device, torch.int32).contiguous() for table in (reach.rows, reach.cols))
    row_weights, col_weights = (part.to(device, number).contiguous() for part in weights)
    addresses = [t.data_ptr() for t in (source.values, rows, cols, row_weights, col_weights)]
    numbers = (source.pitch, *source.values.shape[2:], rows.shape[1], cols.shape[1], 0)
    return Head(
        "resample.cu",
        struct.pack("=5Q6i", *addresses, *numbers),
        macros=macros,
        weights=(rows, cols, row_weights, col_weights),
        channels=source.values.shape[1],
    )


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
        LpPool2d: _pool,
        Interpolate: _resample,
        Places: _copied,
        PixelShuffle: _shuffle,
        PixelUnshuffle: _shuffle,
        ChannelIndex: _copied,
        ChannelShuffle: _copied,
        OverChannels: norms.over_channels,
        ChannelNorm: norms.channel_norm,
        Normalise: norms.normalise,
        Statistics: norms.statistics,
        BoxMoments: norms.moments,
        BoxMeans: _mean,
        AdaptivePool2d: _adaptive,
    }
)
