"""An inverted residual with a large map: its first two convolutions become one node, the map between is not stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import stages_of
from deltaconvert.passes.fuse_tails import reads_alone
from deltaconvert.passes.join_pairs import ACTIVATIONS, join
from deltaconvert.reach import Pixel

BYTES = 4 << 20  # of the map between

Fits = Callable[[Sequence[Conv2d], torch.dtype], bool]


def join_residuals(gm: fx.GraphModule, fits: Fits) -> fx.GraphModule:
    """Join a depthwise convolution with the 1x1 that only it reads, where there is no threshold between them.

    before:  y = fused[conv1x1, relu6](x);  z = fused[depthwise, relu6](y)
    after:   z = fused[paired(fused[conv1x1, relu6], depthwise), relu6](x)

    fits: whether the backend can compute two such convolutions of this type together.
    """
    for node in list(gm.graph.nodes):
        own = _convolution(node)
        if own is None or own.weight.shape[1] != 1 or not 1 < own.groups == len(own.weight):
            continue
        (source, *_), (shape,) = node.args, [node.args[0].meta["shape"]]
        first = _convolution(source)
        dtype = node.meta["dtype"]
        if first is None or first.groups != 1 or dtype.itemsize * math.prod(shape) < BYTES:
            continue
        (reach,) = first.reaches([source.args[0].meta["shape"]], shape)
        if isinstance(reach, Pixel) and fits([first, own], dtype) and reads_alone(node, source):
            join(gm, source, node)
    return gm


def _convolution(node: fx.Node) -> Conv2d | None:
    """The convolution of a node that is one, with at most an activation behind it."""
    operator: Operator | None = operator_of(node) if node.meta.get("delta") else None
    if operator is None or len(node.args) != 1:
        return None
    head, *tail = stages_of(operator)
    simple = len(tail) <= 1 and all(getattr(stage, "function", None) in ACTIVATIONS for stage in tail)
    return head if simple and isinstance(head, Conv2d) else None
