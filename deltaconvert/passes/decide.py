"""Delta or dense, and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from deltaconvert.nodes import names_of, operator_of, path_of
from deltaconvert.ops.base import Operator
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
                if node.meta.get("is_loose"):
                    node.meta.setdefault("why_dense", "its size follows from values")
                continue
            inputs = [seen(source) for source in node.args]
            reason = why_dense(operator, inputs, seen(node), streams)
            if any(matches(pattern, names_of(node)) for pattern in keep_dense):
                reason = "keep_dense names it"
            if reason is None:
                node.meta["delta"] = True
            else:
                node.meta["why_dense"] = reason
            shapes = [each.shape for each in (*inputs, seen(node))]
            if all(shape is not None for shape in shapes):
                node.meta["macs"] = operator.macs(shapes[:-1], shapes[-1])
        return gm

    return decide


class Seen(NamedTuple):
    """What is known of a value; shape and dtype are None where it is no tensor, shape where it is loose (loose.py)."""

    path: str
    shape: Any
    dtype: torch.dtype | None
    delta: bool
    loose: bool = False


def seen(node: fx.Node) -> Seen:
    meta = node.meta
    shape, dtype = meta.get("shape"), meta.get("dtype")
    return Seen(path_of(node), shape, dtype, meta.get("delta", False), meta.get("is_loose", False))


def why_dense(operator: Operator, inputs: Sequence[Seen], output: Seen, streams: int) -> str | None:
    """None, or the reason why `operator` cannot run as a delta node on these values."""
    for place, (path, shape, dtype, delta, loose) in enumerate((*inputs, output)):
        is_output = place == len(inputs)
        what = "its output" if is_output else f"its input {path}"
        if loose:
            return f"the size of {what} follows from values"
        if shape is None or dtype is None:
            return f"{what} is no tensor"
        if len(shape) != 4:
            return f"{what} has shape {tuple(shape)}, not N C H W"
        if dtype.is_complex:
            return f"{what} is {_short(dtype)}: complex maps are not compared"
        if not dtype.is_floating_point and not operator.integers:
            return f"{what} is {_short(dtype)}, not floating point"
        if not dtype.is_floating_point and not is_output and not delta:
            return f"{what} is {_short(dtype)} and dense: changes of integers are not compared"
        if shape[0] != streams:
            return f"{what} has batch {shape[0]}, the frame has {streams}"
        if 0 in shape:
            return f"{what} is empty"
    return operator.why_dense([each.shape for each in inputs], output.shape)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
