"""The last decision of the plan: how large a change must be, at each node."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from deltaconvert.nodes import names_of, operator_of, path_of, sparsify
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.group_norm import Statistics
from deltaconvert.reach import Everything
from deltaconvert.thresholds import NARROW, WEIGHTED, Thresholds

# Largest factor between a channel's threshold and the node's: unread channels must still be seen.
FARTHEST = 8.0
_TURNS = ("permute", "transpose", "movedim", "contiguous")


def place_thresholds(thresholds: Thresholds) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that decides where changes are compared with what is stored. It writes to meta:

    threshold: the amount that a change must exceed; shares, (C): its factors for single channels, if it is weighted
    placed:    which amount the rules gave to which names
    gate:      at the sparsify of a frame, if there is one
    narrow:    True where the next nodes see a change only in the middle of their windows (deltaconvert/narrow.py)

    Every sparsify compares, exactly at threshold 0. An activation, a gate, statistics or a convolution without an
    activation (linear) compare where their threshold is above 0; so does a chain that ends otherwise, where a rule
    names its path. Elsewhere a candidate is a change.

    before:  y = conv_relu(sparsify(x))
    after:   the same; sparsify with threshold=0.04 (input), conv_relu with threshold=0.1 (activation)
    """
    gate = thresholds.gate if thresholds.gate is not None and thresholds.gate.to_json() else None

    def place_thresholds(gm: fx.GraphModule) -> fx.GraphModule:
        paths = {path_of(node) for node in gm.graph.nodes}
        for node in gm.graph.nodes:
            kind = kind_of(node)
            if kind is None and not may_be_named(node):
                continue
            if not node.meta["dtype"].is_floating_point:  # two labels are equal or not
                continue
            amount, words = thresholds.at(kind, names_of(node), node.meta.get("scale", 0.0))
            if kind is None and amount == 0 and not words:
                continue
            weighted = WEIGHTED in words
            if NARROW in words:
                node.meta["narrow"] = True
            if amount > 0 or node.target is sparsify:
                node.meta["threshold"] = amount
            if weighted and amount > 0 and node.target is not sparsify:
                node.meta["shares"] = shares(node)
            if gate is not None and node.target is sparsify and is_of_frame(node.args[0]):
                node.meta["gate"] = gate
            rule = " ".join([repr(amount), *words]) if words else amount
            # The path of another node means that one, though a rule for it reaches the calls it was parted into.
            own = [name for name in names_of(node) if name == path_of(node) or name not in paths]
            node.meta["placed"] = [(own, rule)]
        return gm

    return place_thresholds


def kind_of(node: fx.Node) -> str | None:
    """The kind of rules that apply to a node; None if none do."""
    operator = operator_of(node) if node.meta.get("delta") else None
    if isinstance(operator, Statistics):
        return "statistics"
    if node.target is not sparsify and operator is None:
        return None
    if _is_gate(node):
        return "gate"
    if node.target is sparsify:
        return "input" if is_of_frame(node.args[0]) else "activation"
    if operator is None:
        return None
    if operator.activation:
        return "activation"
    return "linear" if operator.gains() is not None and _is_read(node) else None


def _is_read(node: fx.Node) -> bool:
    """A delta node reads it. Outputs of the network get no threshold."""
    return any(user.meta.get("delta") for user in node.users)


def may_be_named(node: fx.Node) -> bool:
    """Whether a node without a kind may get a threshold by its path: chains that neither begin with a convolution nor
    end with an activation, such as sums of products."""
    chained = node.meta.get("delta") and isinstance(operator_of(node), Fused)
    return bool(chained) and kind_of(node) is None and node.meta["dtype"].is_floating_point


def frame_of(node: fx.Node) -> fx.Node | None:
    """The frame that a value is, possibly cast or permuted: x of x.permute(0, 3, 1, 2).float()."""
    while node.op != "placeholder":
        cast = getattr(operator_of(node), "function", None) == "cast"
        if not cast and not (node.op == "call_method" and node.target in _TURNS):
            return None
        node = node.all_input_nodes[0]
    return node


def is_of_frame(node: fx.Node) -> bool:
    return frame_of(node) is not None


def _is_gate(node: fx.Node) -> bool:
    """A small map that is broadcast to a larger one in arithmetic."""
    for user in node.users:
        operator = operator_of(user)
        if operator is None or not user.meta.get("delta"):
            continue
        reaches = operator.reaches([source.meta["shape"] for source in user.args], user.meta["shape"])
        for source, reach in zip(user.args, reaches, strict=True):
            if source is node and isinstance(reach, Everything) and reach.size != (1, 1):
                return True
    return False


def shares(node: fx.Node) -> Tensor:
    """(C): the factor of a node's threshold for each channel; small where the next layers read it by large weights.

    A channel's gain is the L2 norm of the weights that read it; the shares are inverse to the gains, and 1 for a
    channel of the root mean square gain. Readers whose gains are not known count as reading all channels alike.
    """
    channels = node.meta["shape"][1]
    squares = torch.zeros(channels, dtype=torch.float64, device="cpu")
    for user in node.users:
        operator = operator_of(user)
        gains = operator.gains() if operator is not None and user.args[0] is node else None
        square = torch.ones_like(squares) if gains is None else gains.detach().cpu().square()
        squares += square / square.mean().clamp(min=1e-30)
    gain = (squares / squares.mean().clamp(min=1e-30)).sqrt()
    return (1 / gain.clamp(min=1e-30)).clamp(1 / FARTHEST, FARTHEST)
