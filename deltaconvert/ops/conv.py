"""Conv2d with any kernel, stride, padding, dilation and groups (ONNX Conv)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.ops.base import Operator, Shape, constant, pair, spelled
from deltaconvert.ops.pad import Pad
from deltaconvert.reach import Pixel, Reach, Window


class Conv2d(Operator):
    """weight (C', C / groups, kh, kw), bias (C') or None; N C H W -> N C' H' W'."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def on_windows(self, windows: Tensor) -> Tensor:
        return F.conv2d(windows, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        kernel = pair(self.weight.shape[2:])
        if kernel == self.stride == (1, 1) and self.padding == (0, 0):
            return [Pixel()]
        return [
            Window(kernel, self.stride, self.padding, self.dilation, pair(shape[2:]), pair(out_shape[2:]))
        ]

    def gains(self) -> Tensor:
        """The L2 norms of the weights that read a channel."""
        weight = self.weight.double().unflatten(0, (self.groups, -1))
        return weight.square().sum((1, 3, 4)).sqrt().flatten()

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return self.weight.numel() * math.prod(out_shape) // out_shape[-3]


@spelled(F.conv2d, torch.conv2d)
def _function(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Operator, list[Any]]:
    weight, bias = constant(weight, "its weight"), constant(bias, "its bias")
    stride, dilation = pair(stride), pair(dilation)
    if isinstance(padding, str):
        pads = _named_padding(padding, weight, dilation)
        if pads[0] != pads[1] or pads[2] != pads[3]:
            return _padded(input, pads, "constant", weight, bias, stride, dilation, groups)
        padding = pads[2], pads[0]
    return Conv2d(weight, bias, stride, pair(padding), dilation, groups), [input]


@spelled(nn.Conv2d)
def _module(m: nn.Conv2d, input: Any) -> tuple[Operator, list[Any]]:
    if m.padding_mode == "zeros":
        return _function(input, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    if isinstance(m.padding, str):
        pads = _named_padding(m.padding, m.weight, pair(m.dilation))
    else:
        (height, width) = pair(m.padding)
        pads = width, width, height, height
    return _padded(input, pads, m.padding_mode, m.weight, m.bias, pair(m.stride), pair(m.dilation), m.groups)


def _padded(
    input: Any,
    pads: tuple[int, ...],
    mode: str,
    weight: Any,
    bias: Any,
    stride: Any,
    dilation: Any,
    groups: int,
) -> tuple[Operator, list[Any]]:
    """A convolution without padding, and the padding as an operator before it."""
    return Conv2d(weight, bias, stride, (0, 0), dilation, groups), [(Pad(pads, mode, None), [input])]


def _named_padding(name: str, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom. What "same" cannot halve it puts at the end."""
    if name == "valid":
        return 0, 0, 0, 0
    height, width = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return width // 2, width - width // 2, height // 2, height - height // 2
