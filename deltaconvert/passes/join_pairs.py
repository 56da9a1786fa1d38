"""Pairs of convolutions on large maps become one node, which does not store the map between them."""

from __future__ import annotations

import math

import torch
from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.ops.paired import Paired
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.fuse_tails import inherit, reads_alone

# Of the map between, at least. Pixels at the border of what changed are computed twice, 4 % of the work for a box of
# 5 % of 360x480 pixels. Smaller maps have relatively longer borders, and less memory to save.
BYTES = 32 << 20
ACTIVATIONS = ("relu", "relu6", "hardtanh", "leaky_relu")


def join_pairs(gm: fx.GraphModule) -> fx.GraphModule:
    """Join two convolutions where only the second reads the first, without a threshold between, and the map is large.

    before:  y = fused[conv3x3, relu](x);  z = fused[conv3x3, relu](y)
    after:   z = fused[paired(fused[conv3x3, relu], conv3x3), relu](x)
    """
    for node in list(gm.graph.nodes):
        if not _is_convolution(node) or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        large = 4 * math.prod(source.meta["shape"]) >= BYTES if "shape" in source.meta else False
        if large and _is_convolution(source) and reads_alone(node, source):
            join(gm, source, node)
    return gm


def _is_convolution(node: fx.Node) -> bool:
    """A float32 convolution whose window is odd and centred, with at most an activation behind it."""
    operator = operator_of(node) if node.meta.get("delta") else None
    if operator is None or node.meta["dtype"] != torch.float32:
        return False
    head, *tail = stages_of(operator)
    return (
        isinstance(head, Conv2d)
        and head.groups == 1
        and head.stride == head.dilation == (1, 1)
        and all(k % 2 and p == k // 2 for k, p in zip(head.weight.shape[2:], head.padding, strict=True))
        and max(head.weight.shape[2:]) > 1
        and len(tail) <= 1
        and all(isinstance(stage, Pointwise) and stage.function in ACTIVATIONS for stage in tail)
    )


def join(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> None:
    """Replace the convolution `source` and `node`, its only reader, by one node."""
    first, second = operator_of(source), operator_of(node)
    assert first is not None and second is not None
    window, *tail = stages_of(second)
    joined: Operator = Paired(first, window)  # type: ignore[arg-type]
    if isinstance(second, Fused):
        joined = Fused([joined, *tail], second.counts, second.slots, second.head_inputs)
    inherit(adopt(gm, node, joined, list(source.args)), [source, node])
    gm.graph.erase_node(source)
