"""ConvTranspose2d with any kernel, stride, padding, output padding, dilation and groups (ONNX ConvTranspose)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, pair, spelled
from deltaconvert.reach import Reach, Window


class ConvTranspose2d(Operator):
    """weight (C, C' / groups, kh, kw), bias (C') or None; N C H W -> N C' H' W'."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        output_padding: tuple[int, int],
        groups: int,
        dilation: tuple[int, int],
    ):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.groups = groups
        self.output_padding = pair(output_padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def gains(self) -> Tensor:
        """The L2 norms of the weights that read a channel."""
        return self.weight.double().square().sum((1, 2, 3)).sqrt()

    def on_windows(self, windows: Tensor) -> Tensor:
        return F.conv_transpose2d(
            windows, self.weight, self.bias, self.stride, 0, 0, self.groups, self.dilation
        )

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        return [
            Window(
                pair(self.weight.shape[2:]),
                self.stride,
                self.padding,
                self.dilation,
                pair(shape[2:]),
                pair(out_shape[2:]),
                transposed=True,
            )
        ]

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return self.weight.numel() * math.prod(shapes[0]) // shapes[0][-3]


_SIZES = ("stride", "padding", "dilation", "kernel_size")


@spelled(F.conv_transpose2d, torch.conv_transpose2d)
def _function(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Operator, list[Any]]:
    weight, bias = constant(weight, "its weight"), constant(bias, "its bias")
    return (
        ConvTranspose2d(
            weight,
            bias,
            pair(stride),
            pair(padding),
            pair(constant(output_padding, "its output padding")),
            groups,
            pair(dilation),
        ),
        [input],
    )


@spelled(nn.ConvTranspose2d)
def _module(module: nn.ConvTranspose2d, input: Any, output_size: Any = None) -> tuple[Operator, list[Any]]:
    return _function(
        input,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        _output_padding(module, input, output_size),
        module.groups,
        module.dilation,
    )


def _output_padding(module: nn.ConvTranspose2d, input: Any, output_size: Any) -> Any:
    """What is wanted beyond the least size that stride, kernel and padding give."""
    if output_size is None:
        return module.output_padding
    shape = input.meta.get("shape") if isinstance(input, Node) else None
    if shape is None:
        raise StaysDense("it is called with output_size, and the size of its input is not known")
    wanted = [constant(side, "its output_size") for side in constant(output_size, "its output_size")][-2:]
    return tuple(
        side - ((length - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for side, length, stride, padding, dilation, kernel in zip(
            wanted, shape[-2:], *(pair(getattr(module, name)) for name in _SIZES), strict=True
        )
    )
