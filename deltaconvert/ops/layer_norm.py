"""Layer and RMS normalisation (ONNX LayerNormalization, RMSNormalization): over the channels of each pixel they are
delta nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, Shape, constant, spelled

_WHY_DENSE = "it normalises over rows or whole maps, not over the channels of a pixel"


class LayerNorm(Operator):
    """Over the last dimensions, of lengths `shape`, as networks write it; weight and bias of that shape, or None."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float):
        super().__init__()
        self.shape, self.eps = list(shape), eps
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return _WHY_DENSE

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        layout = _channels_last(self.shape, layouts)
        return None if layout is None else (ChannelNorm(self.weight, self.bias, self.eps), layout)


class ChannelNorm(Operator):
    """N C H W -> N C H W, each pixel normalised over its channels; weight and bias (C) or None."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float):
        super().__init__()
        self.eps = eps
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, pixels.shape[3:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class RMSNorm(Operator):
    """Over the last dimensions, of lengths `shape`, divided by the root of the mean square; weight of that shape."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, eps: float | None):
        super().__init__()
        self.shape, self.eps = list(shape), eps
        self.keep("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return _WHY_DENSE

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        layout = _channels_last(self.shape, layouts)
        return None if layout is None else (ChannelRMS(self.weight, self.eps), layout)


class ChannelRMS(Operator):
    """N C H W -> N C H W, each pixel divided by the root of its channels' mean square; weight (C) or None."""

    def __init__(self, weight: Tensor | None, eps: float | None):
        super().__init__()
        self.eps = eps
        self.keep("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.rms_norm(pixels, pixels.shape[3:], self.weight, self.eps).permute(0, 3, 1, 2)


def _channels_last(shape: Sequence[int], layouts: Sequence[Layout]) -> Layout | None:
    """Where the last dimension is the channels of a map's pixels, and the only one that is normalised over."""
    (layout,) = layouts
    return layout if len(shape) == 1 and layout.in_order(layout.dims[-1], 1) else None


@spelled(F.layer_norm, torch.layer_norm)
def _function(
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Operator, list[Any]]:
    shape = [constant(length, "its shape") for length in normalized_shape]
    return LayerNorm(shape, constant(weight, "its weight"), constant(bias, "its bias"), eps), [input]


@spelled(nn.LayerNorm)
def _module(module: nn.LayerNorm, input: Any) -> tuple[Operator, list[Any]]:
    return LayerNorm(module.normalized_shape, module.weight, module.bias, module.eps), [input]


@spelled(F.rms_norm, torch.rms_norm)
def _rms_function(
    input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> tuple[Operator, list[Any]]:
    shape = [constant(length, "its shape") for length in normalized_shape]
    return RMSNorm(shape, constant(weight, "its weight"), eps), [input]


@spelled(nn.RMSNorm)
def _rms_module(module: nn.RMSNorm, input: Any) -> tuple[Operator, list[Any]]:
    return RMSNorm(module.normalized_shape, module.weight, module.eps), [input]
