"""Two convolutions that are added become one sum over both: one launch, and neither map is stored."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx

from deltaconvert.backends.cuda.convs import adds_maps
from deltaconvert.nodes import operator_of
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import Fused
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.fuse_tails import inherit, reads_alone


def join_sums(gm: fx.GraphModule) -> fx.GraphModule:
    """Join a convolution with its only reader, a convolution that adds it, if one of them is 1x1 and the kernel can.

    before:  y = conv1x1(a);  z = fused[conv1x1, add, relu](b, y)
    after:   z = fused[sum(conv1x1, conv1x1), relu](a, b)
    """
    for node in list(gm.graph.nodes):
        operator = operator_of(node) if node.meta.get("delta") else None
        if not isinstance(operator, Fused) or not _adds_a_map(operator):
            continue
        source = node.args[1]
        added = operator_of(source) if source.meta.get("delta") and reads_alone(node, source) else None
        if isinstance(added, Conv2d) and source.meta["shape"] == node.meta["shape"]:
            _join(gm, source, node)
    return gm


def _adds_a_map(operator: Fused) -> bool:
    """The addition of a map comes first after the convolution."""
    add = operator.stages[1]
    return (
        isinstance(operator.head, Conv2d)
        and isinstance(add, Arithmetic)
        and add.function == "add"
        and operator.counts[0] == 1
    )


def _join(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> None:
    operator: Any = operator_of(node)
    parts = [(operator_of(source), source.args[0]), (operator.head, node.args[0])]
    fits = partial(adds_maps, dtype=node.meta["dtype"], device=node.meta["device"])
    for (first, x), (second, y) in (parts, parts[::-1]):
        if not fits(first, second):
            continue
        joined: Any = ConvSum(first, second)  # type: ignore[arg-type]
        if len(operator.stages) > 2:
            joined = Fused([joined, *operator.stages[2:]], operator.counts[1:], operator.slots[1:], 2)
        inherit(adopt(gm, node, joined, [x, y, *node.args[2:]]), [source, node])
        gm.graph.erase_node(source)
        return
