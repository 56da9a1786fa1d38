"""Arithmetic broadcasts by itself."""

from __future__ import annotations

import torch
from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.arithmetic import Arithmetic

_EXPANDS = ("expand", "expand_as", torch.broadcast_to)


def drop_expands(gm: fx.GraphModule) -> fx.GraphModule:
    """Remove the expansion of a gate where all that reads it is arithmetic with a map of the full size.

    before:  e = expand_as(gate, x);  y = mul(x, e)
    after:   y = mul(x, gate)
    """
    for node in list(gm.graph.nodes):
        if node.target in _EXPANDS and all(_broadcasts(user, node) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    return gm


def _broadcasts(user: fx.Node, expanded: fx.Node) -> bool:
    if not isinstance(operator_of(user), Arithmetic):
        return False
    return any(
        arg is not expanded and arg.meta.get("shape") == expanded.meta.get("shape") for arg in user.args
    )
