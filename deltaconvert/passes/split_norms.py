"""Group and instance norms become statistics and what is done with them."""

from __future__ import annotations

from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.group_norm import GroupNorm, Normalise, Statistics
from deltaconvert.passes.adopt_operators import adopt


def split_norms(gm: fx.GraphModule) -> fx.GraphModule:
    """Make the statistics a node of their own: a small map that changes as a whole or not at all.

    before:  y = group_norm(x)
    after:   s = statistics(x);  y = normalise(x, s)
    """
    for node in list(gm.graph.nodes):
        norm = operator_of(node)
        if not isinstance(norm, GroupNorm):
            continue
        path = node.meta["path"]
        with gm.graph.inserting_before(node):
            # A copy of the node for adopt to replace.
            call = gm.graph.call_module(str(node.target), node.args)
        call.meta = {**node.meta, "path": f"{path}.statistics"}
        statistics = adopt(gm, call, Statistics(norm.groups, norm.eps), list(node.args))
        gm.delete_submodule(str(node.target))
        adopt(gm, node, Normalise(norm.weight, norm.bias), [*node.args, statistics])
    return gm
