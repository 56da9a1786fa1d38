"""Delta or dense, and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from deltaconvert.check import names_of, operator_of
from deltaconvert.thresholds import matches


def decide(streams: int, keep_dense: Sequence[str] = ()) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that marks each node: meta["delta"], or meta["why_dense"] with the reason.

    streams: the batch size; every map of a delta node has one image per stream.
    keep_dense: paths of nodes, or patterns of them, that the user wants dense.

    before:  y = conv(x);  z = linear(flatten(y))
    after:   the same, conv with delta=True, flatten and linear with their reasons
    """

    def decide(gm: fx.GraphModule) -> fx.GraphModule:
        for node in gm.graph.nodes:
            operator = operator_of(node)
            if operator is None:
                continue
            reason = _why_dense(node, streams)
            if any(matches(pattern, names_of(node)) for pattern in keep_dense):
                reason = "keep_dense names it"
            if reason is None:
                node.meta["delta"] = True
                shapes = [source.meta["shape"] for source in node.args]
                node.meta["macs"] = operator.macs(shapes, node.meta["shape"])
            else:
                node.meta["why_dense"] = reason
        return gm

    return decide


def _why_dense(node: fx.Node, streams: int) -> str | None:
    operator = operator_of(node)
    assert operator is not None
    shapes = []
    for value in (*node.all_input_nodes, node):
        shape, dtype = value.meta.get("shape"), value.meta.get("dtype")
        what = "its output" if value is node else f"its input {value.meta.get('path', value.name)}"
        if shape is None or dtype is None:
            return f"{what} is no tensor"
        if len(shape) != 4:
            return f"{what} has shape {tuple(shape)}, not N C H W"
        if not dtype.is_floating_point and not operator.integers:
            return f"{what} is {_short(dtype)}, not floating point"
        if not dtype.is_floating_point and value is not node and not value.meta.get("delta"):
            return f"{what} is {_short(dtype)} and dense: changes of integers are not compared"
        if shape[0] != streams:
            return f"{what} has batch {shape[0]}, the frame has {streams}"
        if 0 in shape:
            return f"{what} is empty"
        shapes.append(shape)
    # The same map may come in twice: x * x.
    by_node = dict(zip(node.all_input_nodes, shapes, strict=False))
    inputs = [by_node[source] for source in node.args]
    return operator.why_dense(inputs, shapes[-1])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
