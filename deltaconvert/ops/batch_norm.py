"""Batch norm in inference: a scale and a shift per channel (ONNX BatchNormalization).

Where a convolution comes before it the pass fold_batch_norm takes it away; elsewhere it is pointwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, StaysDense, constant, spelled


class BatchNorm(Operator):
    """mean, var, weight and bias (C); N C H W -> N C H W. It is x * scale + shift, each (C)."""

    elementwise = True

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        super().__init__()
        self.keep("mean", mean)
        self.keep("var", var)
        self.keep("weight", weight)
        self.keep("bias", bias)
        self.eps = eps
        scale = torch.rsqrt(self.var + eps)
        scale = scale if weight is None else scale * self.weight
        shift = -self.mean * scale
        self.keep("scale", scale)
        self.keep("shift", shift if bias is None else shift + self.bias)

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        (layout,) = layouts
        return (self, layout) if layout.in_order(layout.dims[1], 1) else None

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


@spelled(F.batch_norm)
def _function(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Operator, list[Any]]:
    if training or running_mean is None or running_var is None:
        raise StaysDense("it normalises by the statistics of the frame, not by stored ones")
    mean, var = constant(running_mean, "its mean"), constant(running_var, "its variance")
    return BatchNorm(mean, var, constant(weight, "its weight"), constant(bias, "its bias"), eps), [input]


@spelled(torch.batch_norm)
def _torch_function(
    input: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: Any,
    eps: float,
    *_cudnn: Any,
) -> tuple[Operator, list[Any]]:
    return _function(input, mean, var, weight, bias, training, eps=eps)


@spelled(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
def _module(
    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm, input: Any
) -> tuple[Operator, list[Any]]:
    return _function(
        input,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        module.training,
        eps=module.eps,
    )
