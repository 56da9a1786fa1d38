"""Linear layers (ONNX Gemm, MatMul): on channels they are 1x1 convolutions, on a flattened map they read all of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from deltaconvert.layout import Atom, Layout
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Everything, Reach


class Linear(Operator):
    """... C -> ... C' with weight (C', C), bias (C') or None: as networks write it, over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return "it runs along the width"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        """N H W C, N (H W) C -> a 1x1 convolution; N (C H W), N C -> one of the whole map. Weights stay views."""
        (layout,) = layouts
        outer, (n, channels, height, width) = self.weight.shape[0], layout.size
        rows = (Atom(0, 1, outer),) if outer > 1 else ()
        if layout.holds(layout.dims[-1], (1, 2, 3)):
            weight = Layout((outer, channels, height, width), (rows, layout.dims[-1])).map_of(self.weight)
            whole = MapLinear(weight.reshape(outer, -1), self.bias)
            return whole, layout.ending_in_channels((n, outer, 1, 1))
        if layout.holds(layout.dims[-1], (1,)):
            weight = Layout((outer, channels, 1, 1), (rows, layout.dims[-1])).map_of(self.weight)
            conv = Conv2d(weight, self.bias, (1, 1), (0, 0), (1, 1), 1)
            return conv, layout.ending_in_channels((n, outer, height, width))
        return None

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return math.prod(out_shape) * self.weight.shape[1]


class MapLinear(Operator):
    """N C H W -> N C' 1 1 with weight (C', C * H * W): a classifier behind flatten."""

    position_free = False

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.keep("weight", weight)
        self.keep("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)[:, :, None, None]

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [Everything((1, 1))]

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        return self.weight.numel() * out_shape[0]


@spelled(F.linear)
def _function(input: Any, weight: Any, bias: Any = None) -> tuple[Operator, list[Any]]:
    return Linear(constant(weight, "its weight"), constant(bias, "its bias")), [input]


@spelled(torch.matmul, operator.matmul, "matmul", torch.mm, "mm")
def _matmul(input: Any, other: Any) -> tuple[Operator, list[Any]]:
    return _addmm(None, input, other)


@spelled(torch.addmm)
def _addmm(input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> tuple[Operator, list[Any]]:
    if not isinstance(mat2, Tensor) or mat2.dim() != 2:
        raise StaysDense("it is no product with a matrix of weights")
    if (beta, alpha) != (1, 1):
        raise StaysDense(f"beta={beta}, alpha={alpha}")
    if isinstance(input, Tensor) and input.shape != mat2.shape[1:]:
        raise StaysDense("what it adds is no bias")
    return Linear(mat2.t(), constant(input, "its bias")), [mat1]


@spelled(nn.Linear)
def _module(module: nn.Linear, input: Any) -> tuple[Operator, list[Any]]:
    return Linear(module.weight, module.bias), [input]


@spelled(torch.einsum)
def _einsum(equation: Any, *operands: Any) -> tuple[Operator, list[Any]]:
    """A product with a matrix of weights: "bhwc,oc->bhwo", or of the channels of a map: "bchw,oc->bohw"."""
    reason = StaysDense("it is no product with a matrix of weights")
    operands = (
        tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    )
    if not isinstance(equation, str) or len(operands) != 2:
        raise reason
    read, _, written = equation.replace(" ", "").partition("->")
    names = read.split(",")
    if isinstance(operands[0], Tensor):
        operands, names = operands[::-1], names[::-1]
    (x, weight), (of_x, of_weight) = operands, names
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(set(of_weight)) != 2:
        raise reason
    inner, outer = sorted(of_weight, key=lambda name: name not in of_x)
    if of_x.count(inner) != 1 or outer in of_x or written != of_x.replace(inner, outer):
        raise reason
    weight = weight if of_weight == outer + inner else weight.t()
    if of_x[-1] == inner:
        return Linear(weight, None), [x]
    if of_x.index(inner) == 1 and len(of_x) == 4:
        return Conv2d(weight[:, :, None, None], None, (1, 1), (0, 0), (1, 1), 1), [x]
    raise reason


@spelled(torch.tensordot)
def _tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> tuple[Operator, list[Any]]:
    """Over the last dimension; over another one the result is no map, for its channels come last."""
    reason = StaysDense("it is no product of the last dimension with a matrix of weights")
    of_a, of_b = constant(dims, "dims") if isinstance(dims, list | tuple) else (range(-dims, 0), range(dims))
    of_a, of_b = ([place] if isinstance(place, int) else list(place) for place in (of_a, of_b))
    if (
        not isinstance(a, Node)
        or not isinstance(b, Tensor)
        or b.dim() != 2
        or len(of_a) != 1
        or out is not None
    ):
        raise reason
    if of_a[0] not in (-1, len(a.meta.get("shape", ())) - 1):
        raise reason
    return Linear(b if of_b[0] % 2 else b.t(), None), [a]
