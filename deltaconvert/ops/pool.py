"""Max, average and norm pooling (ONNX MaxPool, AveragePool, LpPool)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, pair, spelled
from deltaconvert.reach import Reach, Window

Pair = tuple[int, int]


class MaxPool2d(Operator):
    """N C H W -> N C H' W'; outside the map lies minus infinity."""

    fill = float("-inf")

    def __init__(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool):
        super().__init__()
        self.kernel = pair(kernel)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.ceil_mode = ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def on_windows(self, windows: Tensor) -> Tensor:
        return F.max_pool2d(windows, self.kernel, self.stride, 0, self.dilation)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        return [
            Window(
                self.kernel, self.stride, self.padding, self.dilation, pair(shape[2:]), pair(out_shape[2:])
            )
        ]


class AvgPool2d(Operator):
    """N C H W -> N C H' W'."""

    def __init__(
        self,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ):
        super().__init__()
        self.kernel, self.stride, self.padding = pair(kernel), pair(stride), pair(padding)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(
            x,
            self.kernel,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def on_windows(self, windows: Tensor) -> Tensor:
        """Their averages; their sums where each pixel has a divisor of its own."""
        divisor = self.divisor_override if self.position_free else 1
        return F.avg_pool2d(windows, self.kernel, self.stride, 0, divisor_override=divisor)

    def divisors(self, size: Pair) -> Tensor:
        """float64 (1, 1, H', W'), what the sum of each window of a map of `size` is divided by."""
        ones = torch.ones(1, 1, *size, dtype=torch.float64)
        sums = F.avg_pool2d(ones, self.kernel, self.stride, self.padding, self.ceil_mode, divisor_override=1)
        return (sums / self(ones)).round()

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        """Every window divides by the same number."""
        whole = self.count_include_pad or self.padding == (0, 0)
        return self.divisor_override is not None or (whole and not self.ceil_mode)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        return [Window(self.kernel, self.stride, self.padding, (1, 1), pair(shape[2:]), pair(out_shape[2:]))]


class LpPool2d(Operator):
    """N C H W -> N C H' W' by the p-norm of each window."""

    def __init__(self, norm: float, kernel: Pair, stride: Pair, ceil_mode: bool):
        super().__init__()
        self.norm, self.kernel, self.stride, self.ceil_mode = norm, pair(kernel), pair(stride), ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return F.lp_pool2d(x, self.norm, self.kernel, self.stride, self.ceil_mode)

    def on_windows(self, windows: Tensor) -> Tensor:
        return F.lp_pool2d(windows, self.norm, self.kernel, self.stride)

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        """torch scales windows that reach over the edge, and its powers round by where a value lies in memory."""
        return not self.ceil_mode and self.norm in (1, 2)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        (shape,) = shapes
        return [Window(self.kernel, self.stride, (0, 0), (1, 1), pair(shape[2:]), pair(out_shape[2:]))]


@spelled(F.max_pool2d, torch.max_pool2d)
def _max(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Operator, list[Any]]:
    if return_indices:
        raise StaysDense("it returns indices")
    kernel = pair(kernel_size)
    stride = pair(stride) if stride else kernel
    return MaxPool2d(kernel, stride, pair(padding), pair(dilation), ceil_mode), [input]


@spelled(nn.MaxPool2d)
def _max_module(m: nn.MaxPool2d, input: Any) -> tuple[Operator, list[Any]]:
    return _max(input, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@spelled(F.avg_pool2d)
def _avg(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Operator, list[Any]]:
    kernel = pair(kernel_size)
    stride = pair(stride) if stride else kernel
    return AvgPool2d(kernel, stride, pair(padding), ceil_mode, count_include_pad, divisor_override), [input]


@spelled(nn.AvgPool2d)
def _avg_module(m: nn.AvgPool2d, input: Any) -> tuple[Operator, list[Any]]:
    return _avg(
        input, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


@spelled(F.lp_pool2d)
def _lp(
    input: Any, norm_type: Any, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> tuple[Operator, list[Any]]:
    kernel = pair(kernel_size)
    norm = float(constant(norm_type, "its norm"))
    return LpPool2d(norm, kernel, pair(stride) if stride else kernel, ceil_mode), [input]


@spelled(nn.LPPool2d)
def _lp_module(m: nn.LPPool2d, input: Any) -> tuple[Operator, list[Any]]:
    return _lp(input, m.norm_type, m.kernel_size, m.stride, m.ceil_mode)
