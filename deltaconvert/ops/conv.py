"""Conv2d with any kernel, stride, zero padding, dilation and groups (ONNX Conv)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, pair, spelled
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
        self.stride, self.padding, self.dilation, self.groups = (
            pair(stride),
            pair(padding),
            pair(dilation),
            groups,
        )

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

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return self.weight.numel() * out_shape[0] * out_shape[2] * out_shape[3]


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
    if isinstance(padding, str):
        padding = _named_padding(padding, weight, pair(dilation))
    return Conv2d(weight, bias, pair(stride), pair(padding), pair(dilation), groups), [input]


@spelled(nn.Conv2d)
def _module(module: nn.Conv2d, input: Any) -> tuple[Operator, list[Any]]:
    if module.padding_mode != "zeros":
        raise StaysDense(f"padding_mode={module.padding_mode!r}")
    return _function(
        input, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
    )


def _named_padding(name: str, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    if name == "valid":
        return 0, 0
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in totals):
        raise StaysDense("padding='same' pads one side more than the other")
    return totals[0] // 2, totals[1] // 2
