"""Group norm and instance norm: statistics of the frame's own maps (ONNX GroupNormalization, InstanceNormalization).

One call becomes two nodes in the pass split_norms. A change anywhere moves the statistics of its group, and with them
every pixel: exactly so at threshold 0. A threshold on the statistics keeps the rest of the map still until they have
moved by more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.ops.base import Operator, Shape, constant, find, pair, spelled
from deltaconvert.reach import Everything, Reach, stretched


class GroupNorm(Operator):
    """The whole call; N C H W -> N C H W. groups: None where each channel is one, as in instance norm."""

    def __init__(self, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups or x.shape[1], self.weight, self.bias, self.eps)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [Everything(pair(out_shape[2:]))]


class Statistics(Operator):
    """Means and deviations, sqrt(variance + eps), of groups of channels; N C H W -> N (2 * groups) 1 1.

    Both are in the units of the map, so that one threshold fits both.
    """

    def __init__(self, groups: int | None, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], self.groups or x.shape[1], -1)
        variance, mean = torch.var_mean(groups.to(_wide(x.dtype)), 2, correction=0)
        found = torch.cat([mean, (variance + self.eps).sqrt()], 1)
        return found.to(x.dtype).view(*found.shape, *[1] * (x.dim() - 2))

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [Everything((1, 1))]

    def magnitude(self, value: Tensor) -> float:
        """The mean deviation: a map may lie far from zero and yet vary little."""
        return super().magnitude(value[:, value.shape[1] // 2 :])

    def of_parts(self, pixels: Tensor, inside: Tensor) -> Tensor:
        """Per channel the mean and the sum of squares around it, in double."""
        pixels, count = pixels.to(_wide(pixels.dtype)), inside.sum(1).double()
        mean = sums(pixels * inside) / count
        away = (pixels - mean.unsqueeze(1).to(pixels.dtype)) * inside
        # The second pass corrects what the first one lost to rounding.
        left, squares = sums(torch.cat([away, away * away], 2)).double().chunk(2, 1)
        mean = mean.to(pixels.dtype).double()
        return torch.cat([mean + left / count, squares - left * left / count], 1)

    def combined(self, parts: Tensor, counts: Tensor) -> Tensor:
        """Chan's formula for many parts at once: each sum of squares moves to the common mean."""
        streams, total = parts.shape[0], counts.sum()
        mean, squares = parts.chunk(2, 2)
        groups = self.groups or mean.shape[2]
        mean, squares = (part.reshape(streams, len(counts), groups, -1) for part in (mean, squares))
        counts = counts.view(1, -1, 1, 1)
        common = (mean * counts).sum((1, 3)) / (total * mean.shape[3])
        apart = mean - common.view(streams, 1, groups, 1)
        variance = (squares + counts * apart * apart).sum((1, 3)) / (total * mean.shape[3])
        return torch.cat([common, (variance + self.eps).sqrt()], 1)


class Normalise(Operator):
    """(map, statistics) -> (map - mean) / deviation * weight + bias; N C H W, N (2 * groups) 1 1 -> N C H W."""

    elementwise = True

    def __init__(self, weight: Tensor | None, bias: Tensor | None):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor, statistics: Tensor) -> Tensor:
        spread = x.shape[1] * 2 // statistics.shape[1]
        mean, deviation = statistics.repeat_interleave(spread, 1).chunk(2, 1)
        ones = [1] * (x.dim() - 2)
        x = (x - mean) / deviation
        x = x if self.weight is None else x * self.weight.view(-1, *ones)
        return x if self.bias is None else x + self.bias.view(-1, *ones)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [stretched(shape, out_shape) for shape in shapes]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def sums(values: Tensor) -> Tensor:
    """(parts, a power of two, C) -> (parts, C), by halves: single additions give the same bits wherever they run."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


@spelled(F.group_norm, torch.group_norm)
def _group_norm(
    input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_cudnn: Any
) -> tuple[Operator, list[Any]]:
    weight, bias = constant(weight, "its weight"), constant(bias, "its bias")
    return GroupNorm(constant(num_groups, "its groups"), weight, bias, eps), [input]


@spelled(nn.GroupNorm)
def _group_norm_module(m: nn.GroupNorm, input: Any) -> tuple[Operator, list[Any]]:
    return _group_norm(input, m.num_groups, m.weight, m.bias, m.eps)


@spelled(F.instance_norm)
def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> tuple[Operator, list[Any]]:
    if not constant(use_input_stats, "use_input_stats"):
        batch_norm = find(F.batch_norm)
        assert batch_norm is not None
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return GroupNorm(None, constant(weight, "its weight"), constant(bias, "its bias"), eps), [input]


@spelled(torch.instance_norm)
def _instance_norm_function(
    input: Any, weight: Any, bias: Any, mean: Any, var: Any, own: Any, momentum: Any, eps: float, *_cudnn: Any
) -> tuple[Operator, list[Any]]:
    return _instance_norm(input, mean, var, weight, bias, own, eps=eps)


@spelled(nn.InstanceNorm2d)
def _instance_norm_module(m: nn.InstanceNorm2d, input: Any) -> tuple[Operator, list[Any]]:
    own = m.training or not m.track_running_stats
    return _instance_norm(input, m.running_mean, m.running_var, m.weight, m.bias, own, eps=m.eps)
