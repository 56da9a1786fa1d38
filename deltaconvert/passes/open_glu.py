"""Gated linear units become the halves they are made of."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def open_glu(gm: fx.GraphModule) -> fx.GraphModule:
    """Write glu as what it computes; open_tuples makes slices of the halves.

    before:  y = glu(x, 1)
    after:   a, b = chunk(x, 2, 1);  y = a * sigmoid(b)
    """
    for node in list(gm.graph.nodes):
        if node.target is not F.glu:
            continue
        source, dim = _arguments(*node.args, **node.kwargs)
        with gm.graph.inserting_before(node):
            halves = gm.graph.call_function(torch.chunk, (source, 2, dim))
            first, second = (gm.graph.call_function(operator.getitem, (halves, i)) for i in (0, 1))
            gate = gm.graph.call_function(torch.sigmoid, (second,))
            product = gm.graph.call_function(operator.mul, (first, gate))
        parts = {"chunk": halves, "first": first, "second": second, "sigmoid": gate}
        for name, part in parts.items():
            part.meta = {**node.meta, "path": f"{node.meta['path']}.{name}"}
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        gm.graph.erase_node(node)
    return gm


def _arguments(input: Any, dim: Any = -1) -> tuple[Any, Any]:
    return input, dim
