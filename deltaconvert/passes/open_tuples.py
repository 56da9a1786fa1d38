"""chunk, split and unbind become slices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import fx

# max(x, 1) is a tuple of the values and their channels.
_EXTREMES: dict[Any, tuple[Any, Any]] = {
    key: pair
    for keys, pair in (
        ((torch.max, "max"), (torch.amax, torch.argmax)),
        ((torch.min, "min"), (torch.amin, torch.argmin)),
    )
    for key in keys
}
_CHUNK = (torch.chunk, "chunk")
_UNBIND = (torch.unbind, "unbind")
_SPLIT = (torch.split, torch.functional.split, "split", "split_with_sizes", torch.split_with_sizes)
_JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack)
_SEEN = ("dtype", "device", "scale", "is_loose", "is_constant")  # of a map, and so of its part


def open_tuples(gm: fx.GraphModule) -> fx.GraphModule:
    """Replace the parts of a chunk, a split, an unbind or a maximum by calls of their own, where all are taken one by
    one, or joined again.

    before:  t = chunk(x, 2, 1);  a = t[0];  b = t[1];  values, labels = max(x, 1)
    after:   a = x[:, 0:32];  b = x[:, 32:64];  values = amax(x, 1);  labels = argmax(x, 1)

    before:  t = split(x, 3, 1);  a = t[0];  y = cat(t, 1)
    after:   a = x[:, 0:3];  y = cat([x[:, 0:3], x[:, 3:6]], 1)

    before:  q, k, v = unbind(x, 0)
    after:   q = x[0];  k = x[1];  v = x[2]
    """
    for node in list(gm.graph.nodes):
        if node.target in _EXTREMES:
            _open_extremes(gm, node)
        if node.target not in (*_CHUNK, *_SPLIT, *_UNBIND):
            continue
        source, sizes, dim = _arguments(node)
        shape = source.meta.get("shape") if isinstance(source, fx.Node) else None
        parts = _parts(node, sizes, dim, shape)
        if parts is None or not all(
            _takes_one(user, len(parts)) or _joins(user, node) for user in node.users
        ):
            continue
        before = [slice(None)] * (dim % len(shape))
        for user in list(node.users):
            _take_parts(gm, user, node, source, [(*before, part) for part in parts])
        gm.graph.erase_node(node)
    return gm


def _take_parts(
    gm: fx.GraphModule, user: fx.Node, node: fx.Node, source: fx.Node, indices: list[Any]
) -> None:
    """In the place of t[0] x[:, 0:3]; in the place of t a list of all such."""
    joins = _joins(user, node)
    wanted = indices if joins else [indices[user.args[1]]]  # type: ignore[index]
    with gm.graph.inserting_before(user):
        parts = [gm.graph.call_function(operator.getitem, (source, index)) for index in wanted]
    if not joins:
        parts[0].meta = dict(user.meta)
        user.replace_all_uses_with(parts[0])
        gm.graph.erase_node(user)
        return
    for part, index in zip(parts, indices, strict=True):
        shape = torch.empty(source.meta["shape"], device="meta")[index].shape
        part.meta = {key: source.meta[key] for key in _SEEN if key in source.meta}
        part.meta |= {"shape": tuple(shape), "macs": 0}
    user.update_arg(0, parts)


def _open_extremes(gm: fx.GraphModule, node: fx.Node) -> None:
    def read(input: Any, dim: Any = None, keepdim: Any = False, **others: Any) -> tuple[Any, Any, Any]:
        return input, None if others else dim, keepdim

    source, dim, keepdim = read(*node.args, **node.kwargs)
    parts = {user: _part(user) for user in node.users}
    if not isinstance(dim, int) or None in parts.values():
        return
    for user, part in parts.items():
        with gm.graph.inserting_before(user):
            call = gm.graph.call_function(_EXTREMES[node.target][part], (source, dim, keepdim))
        call.meta = dict(user.meta)
        user.replace_all_uses_with(call)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _part(user: fx.Node) -> Any:
    """0 for the values of a maximum, 1 for their places, None for what is neither."""
    names = {0: 0, 1: 1, -2: 0, -1: 1, "values": 0, "indices": 1}
    return names.get(user.args[1]) if user.target in (operator.getitem, getattr) else None


def _arguments(node: fx.Node) -> tuple[Any, Any, Any]:
    def read(input: Any = None, sizes: Any = None, dim: Any = 0, **named: Any) -> tuple[Any, Any, Any]:
        for name in ("tensor", "self"):
            input = named.get(name, input)
        for name in ("chunks", "split_size_or_sections", "split_size", "split_sizes"):
            sizes = named.get(name, sizes)
        return input, sizes, dim

    def read_unbind(input: Any = None, dim: Any = 0) -> tuple[Any, Any, Any]:
        return input, None, dim

    return (read_unbind if node.target in _UNBIND else read)(*node.args, **node.kwargs)


def _parts(
    node: fx.Node, sizes: Any, dim: Any, shape: Sequence[int] | None
) -> Sequence[int] | list[slice] | None:
    """The index of every part; None if they are not known at conversion."""
    if shape is None or not isinstance(dim, int):
        return None
    total = shape[dim]
    if node.target in _UNBIND:
        return range(total)
    if isinstance(sizes, int):
        step = -(-total // sizes) if node.target in _CHUNK else sizes
        return [slice(start, min(start + step, total)) for start in range(0, total, step)]
    if isinstance(sizes, list | tuple) and all(isinstance(s, int) for s in sizes):
        stops = list(accumulate(sizes))
        return [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    return None


def _takes_one(user: fx.Node, count: int) -> bool:
    return (
        user.target is operator.getitem and isinstance(user.args[1], int) and -count <= user.args[1] < count
    )


def _joins(user: fx.Node, node: fx.Node) -> bool:
    return user.target in _JOINS and bool(user.args) and user.args[0] is node
