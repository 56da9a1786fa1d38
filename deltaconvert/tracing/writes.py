"""Writes in place in a traced graph: running it once on the example shows which values they change."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.layout import memory_of
from deltaconvert.nodes import attribute_of, name_called
from deltaconvert.ops.base import find, is_known
from deltaconvert.passes.functionalise import (
    OUT_OF_PLACE,
    WriteToView,
    kept_type,
    makes_truths,
    may_share,
    module_path,
    writes_in_place,
)
from deltaconvert.passes.loose import is_foreign
from deltaconvert.signature import tensors_of
from deltaconvert.tracing.keeps import kept_by
from deltaconvert.tracing.unseen import written_by

# Modules that hand their input on, or lay it out anew.
_VIEWING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_HANDING_ON = ("dropout", "feature_dropout", "to", "type", "float", "double", "half", "detach")
_FACTS = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad")  # of a tensor: no tensors


def watch_augmented(module: fx.GraphModule, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Note what each x += y is; only values tell tensors from sizes, and which tensors share memory.

    meta["rebinds"]: x is no tensor (n = x.shape[2]; n += 1). meta["unseen"]: no tensor that is read later shares
    memory with x, such as another part of the same chunk. meta["keeps"], also of x.add_(y) and x.gt_(0): the type
    of x, where x + y and x > 0 have another.
    """
    augmented = [node for node in module.graph.nodes if _is_augmented(node)]
    for node in augmented:
        node.meta["rebinds"] = True  # stays so where the network does not run: convert says so better
    if augmented or any(map(_may_widen, module.graph.nodes)):
        with torch.no_grad(), suppress(Exception):
            _AugmentedWatch(module).run(*_copies(args, kwargs))


def watch_views(module: fx.GraphModule, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Note whose memory a result is, where the name of the call does not tell: x.mT, x.unflatten, dropout in eval mode.

    meta["views"]: the input that shares memory with the result. meta["is_same"]: it is the very same values.
    """
    nodes = list(module.graph.nodes)
    if any(map(writes_in_place, nodes)) and any(map(_may_be_view, nodes)):
        with torch.no_grad(), suppress(Exception):
            _ViewWatch(module).run(*_copies(args, kwargs))


def refuse_writes_to_constants(module: fx.GraphModule) -> None:
    """WriteToView where forward writes what it computes to a tensor that it has not computed: of the network, or made
    of numbers (mask = torch.zeros(4); mask[0] = x.mean()). What it does with that tensor besides is not in the graph:
    torch.fx sees what is called with its proxies alone."""
    for node in module.graph.nodes:
        if writes_in_place(node) or node.target == "__setitem__":
            memory = node.args[0]
            while isinstance(memory, fx.Node) and may_share(memory):
                memory = memory.args[0]
            if isinstance(memory, fx.Node) and memory.op == "get_attr":
                raise WriteToView(module_path(node), node, f"to {memory.target}, which is no map")


def watch_islands(module: fx.GraphModule, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Find the modules and functions that stay whole and write to their inputs.

    WriteToView, naming the module around it, where something reads such an input later: only that module as a whole
    sees the write. Where nothing does, meta["writes_inputs"] tells that the call needs inputs of its own.
    """
    if any(is_foreign(node) for node in module.graph.nodes):
        with torch.no_grad():
            _IslandWatch(module).run(*_copies(args, kwargs))


def refuse_shared_memories(module: fx.GraphModule) -> None:
    """WriteToView, naming the module around it, where a module that stays whole keeps a tensor that something else
    reads: what it writes there, perhaps in bright frames alone, no graph can tell. Weights are not written to."""
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    wholes = [node for node in calls if is_island(node)]
    if not wholes:
        return
    known = (module.get_submodule(str(node.target)) for node in calls if node not in wholes)
    read = {memory_of(x) for each in known for x in each.buffers()}
    read |= {
        memory_of(attribute_of(node))
        for node in module.graph.nodes
        if node.op == "get_attr" and isinstance(attribute_of(node), Tensor)
    }
    for node in wholes:
        for name, slot in kept_by(module.get_submodule(str(node.target))).items():
            x = slot.value
            if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.layout != torch.strided:
                continue
            if x.numel() and memory_of(x) in read:
                raise WriteToView(
                    _around(node), node, f"to {name}, for all that is known, and others read that"
                )


def refuse_shared_places(module: fx.GraphModule, root: nn.Module) -> None:
    """WriteToView, naming the module around it, where a module that stays whole may write to a dict, a list, an object
    or a weight that others in the network have as well: the graph has what was there while it was traced."""
    calls = [node for node in module.graph.nodes if is_island(node)]
    wholes = [module.get_submodule(str(node.target)) for node in calls]
    others = kept_by(root, without=wholes) if wholes else {}
    for node, whole in zip(calls, wholes, strict=True):
        name = written_by(whole, others, root)
        if name is not None:
            raise WriteToView(_around(node), node, f"to {name}, for all that is known, and others have that")


class _AugmentedWatch(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self._ran: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        self._ran.add(n)
        if _is_augmented(n):
            written = self.env[n.args[0]]
            n.meta["rebinds"] = not isinstance(written, Tensor)
            if isinstance(written, Tensor):
                others = self.env.keys() - set(self.user_to_last_uses.get(n, ())) - {n.args[0]}
                values = pytree.tree_leaves([self._read_later(other) for other in others])
                n.meta["unseen"] = not any(isinstance(v, Tensor) and _overlap(written, v) for v in values)
        if _may_widen(n):
            into, *read = (self.env[source] for source in n.all_input_nodes)
            n.meta["keeps"] = kept_type(n, into, read)
        return super().run_node(n)

    def _read_later(self, node: fx.Node) -> Any:
        """The value, or of a tuple the parts that are read later: parts[1] does not read parts[0]."""
        value, users = self.env[node], [user for user in node.users if user not in self._ran]
        if isinstance(value, tuple) and all(u.target is operator.getitem for u in users):
            return [value[u.args[1]] if isinstance(u.args[1], int | slice) else value for u in users]
        return value


class _ViewWatch(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        inputs = {source: self.env[source] for source in n.all_input_nodes}
        result = super().run_node(n)
        made = {memory_of(x) for x in tensors_of(result)}
        if _may_be_view(n) and made:
            for source, value in inputs.items():
                if any(memory_of(x) in made for x in tensors_of(value)):
                    n.meta["views"], n.meta["is_same"] = source, _same_place(result, value)
        return result


class _IslandWatch(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        if not is_foreign(n):
            return super().run_node(n)
        inputs = tensors_of(self.fetch_args_kwargs_from_env(n))
        versions = [x._version for x in inputs]
        result = super().run_node(n)
        written = {memory_of(x) for x, version in zip(inputs, versions, strict=True) if x._version != version}
        if written:
            n.meta["writes_inputs"] = True
            for other in self.env.keys() - set(self.user_to_last_uses.get(n, ())):
                if any(memory_of(value) in written for value in tensors_of(self.env[other])):
                    raise WriteToView(_around(n), n, f"to {other.name}, which is read afterwards")
        return result


def _is_augmented(node: fx.Node) -> bool:
    writes = node.op == "call_function" and node.target in (*OUT_OF_PLACE, operator.setitem)
    return writes and isinstance(node.args[0], fx.Node)


def _may_widen(node: fx.Node) -> bool:
    """What it writes in place may have another type out of place."""
    return writes_in_place(node) and (len(node.all_input_nodes) > 1 or makes_truths(node))


def is_island(node: fx.Node) -> bool:
    """It calls a module that stays whole: nobody sees what that does to its inputs."""
    if node.op != "call_module":
        return False
    return not is_known(node.graph.owning_module.get_submodule(str(node.target)))


def _may_be_view(node: fx.Node) -> bool:
    """Nothing but a run tells whether its result shares memory with an input."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return type(module) in _VIEWING
    if node.target is getattr:
        return node.args[1] not in _FACTS
    if node.op not in ("call_function", "call_method") or writes_in_place(node):
        return False
    name = name_called(node)
    return name in _HANDING_ON or not (may_share(node) or find(node.target))


def _same_place(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    places = [(x.storage_offset(), x.shape, x.stride(), x.dtype) for x in (a, b)]
    return places[0] == places[1]


def _around(node: fx.Node) -> str:
    """The path of the module in whose forward `node` calls another, or a function; "" for the root."""
    paths = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    paths = paths[:-1] if node.op == "call_module" else paths
    return paths[-1] if paths else ""


def _copies(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    return [frame.clone() for frame in tensors_of((tuple(args), kwargs))]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """The two share values, not just a storage."""
    if memory_of(a) != memory_of(b) or a.dtype != b.dtype:
        return memory_of(a) == memory_of(b)
    mask = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    mask.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(mask.as_strided(b.shape, b.stride(), b.storage_offset()).any())
