"""Pairs of convolutions on large maps become one node: the map between is not stored, and made again at its border."""

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

# Of the map between. A pixel of the border around what changed is computed twice: of a box of 5 % of 360x480 pixels
# that is 4 % of the work. Small maps have longer borders and take less memory.
BYTES = 32 << 20
ACTIVATIONS = ("relu", "relu6", "hardtanh", "leaky_relu")


def join_pairs(gm: fx.GraphModule) -> fx.GraphModule:
    """A convolution joins the one that alone reads it, where no threshold stands between them and the map is large.

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
    """Of float32, with a window of odd size in its middle, and with an activation behind it or nothing."""
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
    """`node`, which alone reads the convolution `source`, becomes both."""
    first, second = operator_of(source), operator_of(node)
    assert first is not None and second is not None
    window, *tail = stages_of(second)
    joined: Operator = Paired(first, window)  # type: ignore[arg-type]
    if isinstance(second, Fused):
        joined = Fused([joined, *tail], second.counts, second.slots, second.head_inputs)
    inherit(adopt(gm, node, joined, list(source.args)), [source, node])
    gm.graph.erase_node(source)
