"""Convolutions in oneDNN with weights in its own order, and with following operators fused into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise


@dataclass(frozen=True)
class Epilogue:
    """What oneDNN does to a sum before it stores it: add a map of the same shape, then an activation."""

    adds: bool = False
    attribute: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


class PackedConv:
    """A convolution whose weights are kept in oneDNN's own order; torch would reorder them in every call.

    The order can depend on the size of the input, but most sizes share one: weights are kept once for each order. Even
    to find out the order takes milliseconds, so equal convolutions share `orders`. The operators are Inductor's, which
    some builds of torch lack (can_pack). As in Inductor, a fused relu or hardtanh turns NaN into a number.
    """

    def __init__(self, conv: Conv2d, padding: tuple[int, int], epilogue: Epilogue, orders: dict[Any, bytes]):
        self._orders = orders  # geometry and input's shape -> oneDNN's description of the order
        self._conv, self._epilogue, self._padding = conv, epilogue, list(padding)
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        self._packed: dict[tuple[int, ...], Tensor] = {}  # by the input's shape
        self._kept: dict[bytes, Tensor] = {}  # by order

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        weight = self._packed.get(tuple(x.shape))
        if weight is None:
            weight = self._pack(tuple(x.shape))
        epilogue = self._epilogue
        geometry = (self._padding, self._stride, self._dilation, self._conv.groups)
        fused = (list(epilogue.scalars), epilogue.algorithm)
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self._conv.bias, *geometry, epilogue.attribute, *fused
            )
        activation = None if epilogue.attribute == "none" else epilogue.attribute
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, weight, self._conv.bias, *geometry, "add", 1.0, activation, *fused
        )

    def _pack(self, shape: tuple[int, ...]) -> Tensor:
        conv = self._conv
        size = (conv.weight.shape, *map(tuple, (self._padding, self._stride, self._dilation)), shape)
        weight = self._kept.get(self._orders.get(size, b""))
        if weight is None:
            plain = conv.weight.contiguous(memory_format=torch.channels_last)
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                plain, self._padding, self._stride, self._dilation, conv.groups, list(shape)
            )
            order = torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy().tobytes()
            self._orders[size] = order
            weight = self._kept.setdefault(order, weight)
        self._packed[shape] = weight
        return weight


def can_pack(example: Tensor) -> bool:
    """Whether oneDNN takes this map, and torch has the operators for packed weights."""
    return bool(
        (example.dtype == torch.float32 or (example.dtype == torch.bfloat16 and has_bfloat16()))
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")
    )


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself. Without that oneDNN widens it in every call, or refuses it."""
    return has_amx() or _asks("_is_avx512_bf16_supported")


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX), many times as fast as pairs of them."""
    return _asks("_is_amx_tile_supported")


def _asks(name: str) -> bool:
    """The answer of a function that torch has from 2.6 on."""
    return bool(getattr(torch.cpu, name, bool)())


def absorb(
    conv: Conv2d, followers: Sequence[Operator], counts: Sequence[int], widths: Sequence[int | None]
) -> tuple[Epilogue, int]:
    """(what of `followers` oneDNN can do in the convolution's epilogue, how many of them that is).

    counts: the further inputs that each follower takes; widths: their channels in order, None for a gate.
    """
    taken, adds = 0, False
    if followers and adds_map(followers[0], conv.weight.shape[0], widths[: counts[0]]):
        taken, adds = 1, True
    activation = _attribute(followers[taken]) if taken < len(followers) else None
    if activation is None or (adds and activation[0] != "relu"):
        return Epilogue(adds), taken
    return Epilogue(adds, *activation), taken + 1


def adds_map(stage: Operator, channels: int, widths: Sequence[int | None]) -> bool:
    """Whether it adds a map of so many channels. widths: the channels of its further inputs, None for a gate."""
    return isinstance(stage, Arithmetic) and stage.function == "add" and list(widths) == [channels]


def _attribute(stage: Operator) -> tuple[str, tuple[float, ...], str] | None:
    """oneDNN's name, numbers and algorithm for an activation."""
    if not isinstance(stage, Pointwise):
        return None
    options: dict[str, Any] = stage.options
    match stage.function:
        case "relu" | "sigmoid" | "tanh" | "hardswish" | "hardsigmoid" as name:
            return name, (), ""
        case "silu":
            return "swish", (), ""
        case "relu6":
            return "hardtanh", (0.0, 6.0), ""
        case "hardtanh":
            return "hardtanh", (options.get("min_val", -1.0), options.get("max_val", 1.0)), ""
        case "leaky_relu":
            return "leaky_relu", (options.get("negative_slope", 0.01),), ""
        case "gelu":
            return "gelu", (), options.get("approximate", "none")
    return None
