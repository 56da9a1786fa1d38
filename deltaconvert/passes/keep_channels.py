"""Reductions over the channels keep one channel, and a squeeze behind them removes it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx

from deltaconvert.ops.base import find


def keep_channels(gm: fx.GraphModule) -> fx.GraphModule:
    """Let reductions over the channels of a map keep that dimension: only so is their result a map.

    before:  y = argmax(x, 1)
    after:   k = argmax(x, 1, keepdim=True);  y = squeeze(k, 1)
    """
    for node in list(gm.graph.nodes):
        call = _reduction(node)
        if call is None:
            continue
        shape, kwargs = node.meta["shape"], call.arguments | {"keepdim": True}
        source = kwargs.pop(next(iter(kwargs)))
        with gm.graph.inserting_before(node):
            kept = gm.graph.create_node(node.op, node.target, (source,), kwargs)
            squeezed = gm.graph.call_function(torch.squeeze, (kept, 1))
        kept.meta = {**node.meta, "shape": (shape[0], 1, *shape[1:])}
        squeezed.meta = {
            **node.meta,
            "path": f"{node.meta.get('path', node.name)}.squeeze",
            "why_dense": "its result has no channels, so it is no map",
        }
        node.replace_all_uses_with(squeezed)
        gm.graph.erase_node(node)
    return gm


def _reduction(node: fx.Node) -> Any:
    """The named arguments of a call that reduces the channels of a map to nothing; None for every other node."""
    spelling = find(node.target) if node.op in ("call_function", "call_method") else None
    if spelling is None or "keepdim" not in inspect.signature(spelling).parameters:
        return None
    try:
        call = inspect.signature(spelling).bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    source, *_ = call.arguments.values()
    dim = call.arguments.get("dim", call.arguments.get("axis"))
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    drops = dims in ((1,), (-3,)) and not call.arguments.get("keepdim", False) and "shape" in node.meta
    of_map = isinstance(source, fx.Node) and len(source.meta.get("shape", ())) == 4
    return call if drops and of_map else None
