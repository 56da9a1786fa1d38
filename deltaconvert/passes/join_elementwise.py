"""Elementwise operators join the activation before them, now that it is known where thresholds stand."""

from __future__ import annotations

from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.passes.fuse_tails import fuse, reads_alone


def join_elementwise(gm: fx.GraphModule) -> fx.GraphModule:
    """Fuse an elementwise operator with the activation that only it reads, where no threshold was placed between them.
    `fuse_tails` ended its chains at activations because there could have been one.

    before:  y = fused[conv, sigmoid](x);  z = sub(y, 0.5)
    after:   z = fused[conv, sigmoid, sub](x)
    """
    for node in list(gm.graph.nodes):
        operator = operator_of(node) if node.meta.get("delta") else None
        if operator is None or not stages_of(operator)[0].elementwise:
            continue
        of_head = node.args[: operator.head_inputs] if isinstance(operator, Fused) else node.args
        source = next((arg for arg in of_head if isinstance(arg, fx.Node) and _ends_before(arg, node)), None)
        if source is not None:
            fuse(gm, [source, node])
    return gm


def _ends_before(source: fx.Node, node: fx.Node) -> bool:
    operator = operator_of(source)
    alike = source.meta.get("delta") and source.meta["shape"][2:] == node.meta["shape"][2:]
    return bool(alike and operator is not None and operator.activation and reads_alone(node, source))
