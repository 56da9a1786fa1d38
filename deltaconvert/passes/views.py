"""Calls that lay values out anew: reshapes, permutes, some places of a dimension."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from deltaconvert.nodes import attribute_of, name_called, operator_of
from deltaconvert.ops.channels import Channels
from deltaconvert.ops.places import WHOLE, Crop

_RESHAPES = "view reshape flatten ravel unflatten squeeze unsqueeze view_as reshape_as".split()
_PERMUTES = "permute transpose swapaxes swapdims movedim moveaxis t".split()


def kind_of(node: fx.Node) -> str | None:
    """reshape: the values in the same order, in another shape. permute: the dimensions in another order."""
    if node.op not in ("call_function", "call_method") or node.meta.get("shape") is None:
        return None
    if node.target is operator.getitem:
        return "reshape" if _keeps_all(node) else None
    if node.target is getattr:
        return "permute" if node.args[1] in ("mT", "T") else None
    name = name_called(node)
    if node.op == "call_function" and getattr(torch, name, None) is not node.target:
        return None
    if name in _PERMUTES and len(node.all_input_nodes) == 1:
        return "permute"
    return "reshape" if name in _RESHAPES else None


def _keeps_all(node: fx.Node) -> bool:
    """x[:, :, None], x[..., 0] where the last dimension has length 1."""
    source, index = node.args
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)
    known = isinstance(source, fx.Node) and source.meta.get("shape") is not None
    return plain and known and math.prod(node.meta["shape"]) == math.prod(source.meta["shape"])


def place_taken(gm: fx.GraphModule, node: fx.Node) -> tuple[int, int] | None:
    """(dimension, place) of a call that takes one place of one dimension: x[0], x[:, 1], select, index_select."""
    name = name_called(node)
    if node.op not in ("call_function", "call_method") or node.kwargs:
        return None
    dim: Any = None
    place: Any = None
    if node.target is operator.getitem:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        places = [at for at, part in enumerate(index) if part != slice(None)]
        dim, place = (places[0], index[places[0]]) if len(places) == 1 else (None, None)
    elif name in ("select", "index_select") and len(node.args) == 3:
        _, dim, place = node.args
    if isinstance(place, fx.Node) and place.op == "get_attr":
        value = attribute_of(place)
        place = int(value) if value.numel() == 1 and not value.is_floating_point() else None
    return (dim, place) if type(dim) is int and type(place) is int else None


def places_taken(node: fx.Node) -> tuple[int, range] | None:
    """(dimension, places) of an operator that takes a slice of one dimension and leaves the others whole."""
    taken, source = operator_of(node), node.args[0] if node.args else None
    if isinstance(taken, Channels):
        bounds = [(taken.start, taken.stop, taken.step), WHOLE, WHOLE]
    elif isinstance(taken, Crop):
        bounds = [taken.channels, taken.rows, taken.cols]
    else:
        return None
    dims = [dim for dim, bound in enumerate(bounds, 1) if bound != WHOLE]
    if len(dims) != 1 or not isinstance(source, fx.Node) or source.meta.get("shape") is None:
        return None
    places = range(source.meta["shape"][dims[0]])[slice(*bounds[dims[0] - 1])]
    return (dims[0], places) if places and places.step > 0 else None


def order_of(node: fx.Node) -> list[int]:
    """Where each dimension of a permute's result comes from: the call itself says, on lengths that differ."""
    probe = torch.empty([place + 2 for place in range(len(node.meta["shape"]))], device="meta")
    if node.op == "call_method":
        result = getattr(probe, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        result = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [length - 2 for length in result.shape]
