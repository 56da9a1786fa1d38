"""Convolutions of N C L with a kernel of one (ONNX Conv): where L is the pixels of a map, 1x1 convolutions of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.ops.linear import Linear


class PointConv1d(Operator):
    """N C L -> N C' L with weight (C', C), bias (C') or None: a Linear layer of each place."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight[:, :, None], self.bias)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return "its places are no pixels of a map"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        if len(layout.dims) != 3:
            return None
        found = Linear(self.weight, self.bias).on_maps([layout.permute((0, 2, 1))])
        return found and (found[0], found[1].permute((0, 2, 1)))

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return math.prod(out_shape) * self.weight.shape[1]


@spelled(F.conv1d, torch.conv1d)
def _function(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Operator, list[Any]]:
    weight = constant(weight, "its weight")
    moves = stride not in (1, (1,), [1]) or padding not in (0, (0,), [0], "valid", "same")
    if weight.shape[2] != 1 or moves or groups != 1:
        raise StaysDense(
            "it runs along one dimension: only with a kernel of one, stride 1 and one group it does not"
        )
    return PointConv1d(weight[:, :, 0], constant(bias, "its bias")), [input]


@spelled(nn.Conv1d)
def _module(module: nn.Conv1d, input: Any) -> tuple[Operator, list[Any]]:
    settings = module.stride, module.padding, module.dilation, module.groups
    return _function(input, module.weight, module.bias, *settings)
