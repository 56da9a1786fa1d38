"""Calls that change nothing are removed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

_DROPOUTS = (
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
)
_METHODS = ("contiguous", "clone", "detach")


def drop_identities(gm: fx.GraphModule) -> fx.GraphModule:
    """Remove dropout and stochastic depth (inference), contiguous, clone, detach, casts to the type that a value has
    and padding by nothing. Without them memory may be laid out otherwise, so views become reshapes, and what reads
    neighbours in memory gets a contiguous of its own.

    before:  y = dropout(x, 0.5, training=False);  z = conv(y)
    after:   z = conv(x)
    """
    for node in list(gm.graph.nodes):
        if node.op == "call_method" and node.target == "view" and not _is_cast(node):
            node.target = "reshape"
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    for node in list(gm.graph.nodes):
        if _reads_neighbours(node):
            with gm.graph.inserting_before(node):
                laid = gm.graph.call_method("contiguous", (node.args[0],))
            node.update_arg(0, laid)
    return gm


def _is_cast(view: fx.Node) -> bool:
    """x.view(torch.int32): the same bits as another type."""
    return bool(view.kwargs) or isinstance(view.args[1], torch.dtype)


def _reads_neighbours(node: fx.Node) -> bool:
    """torch refuses these where the last dimension is not the innermost one in memory."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    cast = node.op == "call_method" and node.target == "view" and _is_cast(node)
    return cast or node.target is torch.view_as_complex


def _is_identity(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_method":
        return node.target in _METHODS or (node.target in ("to", "type_as") and _casts_to_itself(node))
    if node.target in _DROPOUTS:
        probability = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else None)
        named = node.kwargs.get("training", node.kwargs.get("train", True))
        training = node.args[2] if len(node.args) > 2 else named
        return training is False or bool(probability == 0)
    if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's, which drops whole maps
        return (*node.args[3:], *node.kwargs.values())[-1:] == (False,)
    if node.target is F.pad:
        pad = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
        return isinstance(pad, list | tuple) and all(p == 0 for p in pad)
    return False


def _casts_to_itself(node: fx.Node) -> bool:
    """x.to(y), where y has x's type and lies where x does: known once the plan has seen a frame."""
    other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    if not isinstance(other, fx.Node) or "dtype" not in other.meta:
        return False
    return all(other.meta[key] == node.args[0].meta.get(key) for key in ("dtype", "device"))  # type: ignore[union-attr]
