"""Expansions that arithmetic does not need, because it broadcasts."""

from __future__ import annotations

import torch
from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.channels import ChannelIndex
from deltaconvert.passes.adopt_operators import adopt

_EXPANDS = ("expand", "expand_as", torch.broadcast_to)


def drop_expands(gm: fx.GraphModule) -> fx.GraphModule:
    """Remove the expansion of a gate that only arithmetic with a map of the full size reads. Elsewhere the expansion of
    a map of one channel becomes an index of that channel, several times. What has no dimensions stays expanded: by
    itself it would leave the map its type, as numbers do.

    before:  e = expand_as(gate, x);  y = mul(x, e)
    after:   y = mul(x, gate)

    before:  e = expand_as(a, x);  y = cat([x, e])
    after:   e = ChannelIndex([0, 0, 0])(a);  y = cat([x, e])
    """
    for node in list(gm.graph.nodes):
        if node.target not in _EXPANDS:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        shape, read = node.meta.get("shape", ()), source.meta.get("shape")
        if read != () and all(_broadcasts(user, node) for user in node.users):
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
        elif len(shape) == 4 and read == (shape[0], 1, *shape[2:]):
            same = torch.zeros(shape[1], dtype=torch.int64, device=node.meta["device"])
            adopt(gm, node, ChannelIndex(same), [source])
    return gm


def _broadcasts(user: fx.Node, expanded: fx.Node) -> bool:
    if not isinstance(operator_of(user), Arithmetic):
        return False
    return any(
        arg is not expanded and arg.meta.get("shape") == expanded.meta.get("shape") for arg in user.args
    )
