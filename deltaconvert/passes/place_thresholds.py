"""The last decision of the plan: how large a change must be, at each node."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from deltaconvert.check import names_of, operator_of, sparsify
from deltaconvert.ops.group_norm import Statistics
from deltaconvert.reach import Everything
from deltaconvert.thresholds import Thresholds


def place_thresholds(thresholds: Thresholds) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that writes meta["threshold"] where changes are compared with what is stored, and to meta["placed"]
    which amount the rules gave to which names.

    Every sparsify compares, exactly at threshold 0. An activation, a gate or statistics compare where their threshold
    is above 0; elsewhere a candidate is a change.

    before:  y = conv_relu(sparsify(x))
    after:   the same; sparsify with threshold=0.04 (input), conv_relu with threshold=0.1 (activation)
    """

    def place_thresholds(gm: fx.GraphModule) -> fx.GraphModule:
        for node in gm.graph.nodes:
            operator = operator_of(node) if node.meta.get("delta") else None
            if node.target is sparsify:
                kind = "input" if node.args[0].op == "placeholder" else "activation"
            elif isinstance(operator, Statistics):
                kind = "statistics"
            elif operator is not None and (operator.activation or _is_gate(node)):
                kind = "activation"
            else:
                continue
            kind = "gate" if kind != "statistics" and _is_gate(node) else kind
            if not node.meta["dtype"].is_floating_point:  # two labels are equal or not
                continue
            amount = thresholds.at(kind, names_of(node), node.meta.get("scale", 0.0))
            if amount > 0 or node.target is sparsify:
                node.meta["threshold"] = amount
            node.meta["placed"] = [(names_of(node), amount)]
        return gm

    return place_thresholds


def _is_gate(node: fx.Node) -> bool:
    """A small map that a larger one is multiplied or added with."""
    for user in node.users:
        operator = operator_of(user)
        if operator is None or not user.meta.get("delta"):
            continue
        reaches = operator.reaches([source.meta["shape"] for source in user.args], user.meta["shape"])
        for source, reach in zip(user.args, reaches, strict=True):
            if source is node and isinstance(reach, Everything) and reach.size != (1, 1):
                return True
    return False
