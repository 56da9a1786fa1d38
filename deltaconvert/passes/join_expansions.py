"""A 1x1 convolution that widens a map joins the depthwise convolution that reads it: the wide map is never stored."""

from __future__ import annotations

from torch import fx

from deltaconvert.check import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.expanded import Expanded
from deltaconvert.ops.fused import Fused, head_of, stages_of
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.fuse_tails import inherit
from deltaconvert.reach import Pixel

# A tile makes its border anew, 36 pixels for 16 of a 3x3. Up to so many channels that is cheaper than to store the
# wide map and to gather it again.
CHANNELS = 32


def join_expansions(gm: fx.GraphModule) -> fx.GraphModule:
    """A widening 1x1 convolution joins the depthwise one that alone reads it, where no threshold stands between them.

    before:  y = fused[conv1x1, relu](x);  z = fused[depthwise, relu](y)
    after:   z = fused[expanded(fused[conv1x1, relu], depthwise), relu](x)
    """
    for node in list(gm.graph.nodes):
        operator = operator_of(node) if node.meta.get("delta") else None
        if operator is None or not _is_depthwise(head_of(operator)):
            continue
        source = node.args[0]
        alone = len(source.users) == 1 and node.args.count(source) == 1
        if alone and "threshold" not in source.meta and _widens(source):
            _join(gm, source, node, operator)
    return gm


def _is_depthwise(head: Operator) -> bool:
    if not isinstance(head, Conv2d) or max(head.dilation) > 1:
        return False
    return head.weight.shape[1] == 1 and head.groups == head.weight.shape[0]


def _widens(node: fx.Node) -> bool:
    operator = operator_of(node) if node.meta.get("delta") else None
    if operator is None or len(node.args) != 1 or not isinstance(head_of(operator), Conv2d):
        return False
    shape = node.args[0].meta["shape"]
    (reach,) = operator.reaches([shape], node.meta["shape"])
    narrow = shape[1] <= CHANNELS and shape[1] < node.meta["shape"][1]
    return isinstance(reach, Pixel) and operator.position_free and narrow


def _join(gm: fx.GraphModule, source: fx.Node, node: fx.Node, operator: Operator) -> None:
    expansion = operator_of(source)
    assert expansion is not None
    head, *tail = stages_of(operator)
    joined: Operator = Expanded(expansion, head)  # type: ignore[arg-type]
    if isinstance(operator, Fused):
        joined = Fused([joined, *tail], operator.counts, operator.slots, operator.head_inputs)
    inherit(adopt(gm, node, joined, [*source.args, *node.args[1:]]), [source, node])
    gm.graph.erase_node(source)
