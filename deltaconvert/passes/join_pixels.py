"""1x1 convolutions join the operator before them, whose map is then never stored."""

from __future__ import annotations

from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import head_of
from deltaconvert.passes.fuse_tails import fuse, reads_alone
from deltaconvert.reach import Pixel, Window


def join_pixels(gm: fx.GraphModule) -> fx.GraphModule:
    """Fuse a 1x1 convolution with the delta node that only it reads, where there is no threshold between them.

    before:  y = fused[depthwise, relu](x);  z = fused[conv1x1, add](y, skip)
    after:   z = fused[depthwise, relu, conv1x1, add](x, skip)
    """
    for node in list(gm.graph.nodes):
        operator = operator_of(node) if node.meta.get("delta") else None
        if operator is None or not _is_pixelwise_conv(operator, node):
            continue
        source = node.args[0]
        if reads_alone(node, source) and _computes_apart(source):
            fuse(gm, [source, node])
    return gm


def _is_pixelwise_conv(operator: Operator, node: fx.Node) -> bool:
    head = head_of(operator)
    if not isinstance(head, Conv2d):
        return False
    (reach,) = head.reaches([node.args[0].meta["shape"]], node.meta["shape"])
    return isinstance(reach, Pixel)


def _computes_apart(node: fx.Node) -> bool:
    """The node can compute any of its pixels apart from the rest."""
    operator = operator_of(node)
    if operator is None or not operator.position_free:
        return False
    reach = operator.reaches([source.meta["shape"] for source in node.args], node.meta["shape"])[0]
    return isinstance(reach, Pixel | Window)
