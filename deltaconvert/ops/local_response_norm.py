"""Local response normalisation: each value by its neighbours among the channels (AlexNet, GoogLeNet; ONNX LRN)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.ops.base import Operator, constant, spelled


class LocalResponseNorm(Operator):
    """N C H W -> N C H W: x / (k + alpha * mean of the squares of `size` channels around it) ** beta."""

    def __init__(self, size: int, alpha: float, beta: float, k: float):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def base(self, x: Tensor) -> Tensor:
        """What x is divided by a power of."""
        squares = F.pad(x * x, (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        around = [squares[:, first : first + x.shape[1]] for first in range(self.size)]
        return sum(around, torch.zeros_like(x)) * (self.alpha / self.size) + self.k

    def power(self, base: Tensor) -> Tensor:
        return base.pow(self.beta)


@spelled(F.local_response_norm)
def _function(
    input: Any, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0
) -> tuple[Operator, list[Any]]:
    numbers = [constant(value, "its setting") for value in (size, alpha, beta, k)]
    return LocalResponseNorm(*numbers), [input]


@spelled(nn.LocalResponseNorm)
def _module(module: nn.LocalResponseNorm, input: Any) -> tuple[Operator, list[Any]]:
    return _function(input, module.size, module.alpha, module.beta, module.k)
