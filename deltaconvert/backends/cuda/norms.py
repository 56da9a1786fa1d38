"""Norms and other functions of channels: the parameters of kernels/over_channels.cu and kernels/group_norm.cu."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda.conv_kernels import Head
from deltaconvert.backends.cuda.kernels import TYPES
from deltaconvert.backends.cuda.means import BoxMoments, lanes_of
from deltaconvert.backends.cuda.tail import NoKernel
from deltaconvert.ops.group_norm import Normalise, Statistics
from deltaconvert.ops.layer_norm import ChannelNorm
from deltaconvert.ops.over_channels import OverChannels

PLACES = ("argmax", "argmin")
_ORDERS = {1: 1, 2: 2, float("inf"): 0}  # ORDER of kernels/over_channels.cu


def makes_places(operator: Any) -> bool:
    """Whether its result is a map of int64 whatever it reads."""
    return isinstance(operator, OverChannels) and operator.function in PLACES


def over_channels(operator: OverChannels, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    options = dict(operator.options)
    dtype = options.pop("dtype", None)
    if dtype not in (None, inputs[0].values.dtype):
        raise NoKernel("a result of another type")
    order = options.get("ord", options.get("p", 2))
    if order not in _ORDERS:
        raise NoKernel(f"a norm of order {order}")
    correction = options.get("correction", 1)
    if correction != int(correction):
        raise NoKernel(f"correction={correction}")
    function, eps = operator.function.upper(), options.get("eps", 0.0)
    outputs = 1 if operator.makes_one else inputs[0].values.shape[1]
    return _of_pixels(function, inputs[0], outputs, eps, int(correction), ORDER=_ORDERS[order])


def channel_norm(operator: ChannelNorm, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    source, affine = inputs[0], _affine(operator, inputs[0])
    return _of_pixels("LAYER_NORM", source, source.values.shape[1], operator.eps, 0, affine)


def _of_pixels(
    function: str,
    source: Any,
    outputs: int,
    eps: float,
    correction: int,
    affine: tuple[Tensor, ...] = (),
    **macros: int,
) -> Head:
    dtype, channels = source.values.dtype, source.values.shape[1]
    addresses = [t.data_ptr() for t in affine] or [0, 0]
    read = {"READ": min(16 // dtype.itemsize, source.pitch)}
    return Head(
        "over_channels.cu",
        struct.pack(
            "=3Qd4i", source.values.data_ptr(), *addresses, eps, source.pitch, channels, correction, 0
        ),
        "over_channels",
        {"TYPE": TYPES[dtype], "FUNCTION": function, "LANES": lanes_of(channels, dtype), **read, **macros},
        weights=affine,
        channels=outputs,
    )


def normalise(operator: Normalise, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    source, statistics = inputs
    if source.values.shape != edge.values.shape:
        raise NoKernel("a map that is stretched")
    channels, groups = source.values.shape[1], statistics.values.shape[1] // 2
    affine = _affine(operator, source)
    addresses = [t.data_ptr() for t in (source.values, statistics.values, *affine)]
    numbers = (source.pitch, statistics.pitch, channels // groups, groups)
    return Head(
        "group_norm.cu", struct.pack("=4Q4i", *addresses, *numbers), weights=affine, channels=channels
    )


def moments(operator: BoxMoments, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    (source,) = inputs
    _, channels, height, width = source.values.shape
    dtype = source.values.dtype
    return Head(
        "group_norm.cu",
        struct.pack("=Q4i", source.values.data_ptr(), source.pitch, height, width, operator.side),
        "moments",
        {"TYPE": TYPES[dtype], "LANES": lanes_of(channels, edge.values.dtype)},
        channels=edge.values.shape[1],
    )


def statistics(operator: Statistics, reaches: Any, inputs: Sequence[Any], edge: Any) -> Head:
    (boxes,) = inputs
    if boxes.of_boxes is None:
        raise NoKernel("statistics with something fused behind them")
    side, height, width = boxes.of_boxes
    channels = boxes.values.shape[1] // 2
    numbers = (
        boxes.pitch,
        *boxes.values.shape[2:],
        side,
        height,
        width,
        channels,
        operator.groups or channels,
    )
    return Head(
        "group_norm.cu",
        struct.pack("=Qd8i", boxes.values.data_ptr(), operator.eps, *numbers),
        "statistics",
        channels=edge.values.shape[1],
    )


def _affine(operator: Normalise | ChannelNorm, source: Any) -> tuple[Tensor, Tensor]:
    """Weights and biases, padded to whole vectors; ones and zeros if there are none."""
    number = torch.float64 if source.values.dtype == torch.float64 else torch.float32
    channels = source.values.shape[1]
    found = []
    for values, otherwise in ((operator.weight, 1.0), (operator.bias, 0.0)):
        padded = torch.zeros(-(-channels // 8) * 8, dtype=number, device=source.values.device)
        padded[:channels] = otherwise if values is None else values
        found.append(padded)
    return found[0], found[1]
