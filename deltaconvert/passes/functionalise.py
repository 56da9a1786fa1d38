"""In-place writes become values of their own."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload

from deltaconvert.ops.base import is_known

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
# Calls whose result may share memory with their input.
_VIEWS = frozenset(
    "view reshape flatten squeeze unsqueeze transpose permute expand expand_as narrow select chunk split tensor_split "
    "unbind getitem detach contiguous to float half double type view_as reshape_as t swapaxes movedim diagonal unfold "
    "dropout feature_dropout".split()
)


class WriteToView(Exception):
    """A write that cannot become a value of its own; `path` is the module that makes it, "" for the root."""

    def __init__(self, path: str, node: fx.Node, how: str = "to memory that is read through another view"):
        super().__init__(f"writes in place ({node.name}) {how}")
        self.path = path


def functionalise(gm: fx.GraphModule) -> fx.GraphModule:
    """Give every in-place write its out-of-place spelling; later readers read its result.

    What was seen of x += y on the example (trace._AugmentedWatch) goes before what the spelling tells: meta["rebinds"]
    where x is no tensor, so that nothing is written; meta["unseen"] where no map that is read later shows the write.

    before:  y = conv(x);  r = relu_(y);  z = add(y, s)
    after:   y = conv(x);  r = relu(y);   z = add(r, s)
    """
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}  # the first node of the memory a node may share
    members: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in list(gm.graph.nodes):
        rewrite = _in_place(node)
        if rewrite is not None and node.meta.get("rebinds"):
            rewrite()
            rewrite = None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if rewrite is None:
            home = root[source] if source is not None and _may_share(node) else node
            root[node] = home
            members[home].append(node)
            continue
        written = node.args[0]
        assert isinstance(written, fx.Node)
        for other in members[root[written]]:
            if node.meta.get("unseen") or other is written:
                continue
            if any(order[user] > order[node] for user in other.users):
                raise WriteToView(module_path(node), node)
        rewrite()
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)
        root[node] = node
        members[node].append(node)
    return gm


def _in_place(node: fx.Node) -> Callable[[], None] | None:
    """None, or what makes `node` write to memory of its own."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_method":
        name = str(node.target)
        plain = name[:-1]
        if name.endswith("_") and not name.endswith("__"):
            if not callable(getattr(torch.Tensor, plain, None)):
                raise WriteToView(module_path(node), node, f"by {name}, which has no out-of-place spelling")
            return lambda: setattr(node, "target", plain)
    elif node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        if getattr(module, "inplace", False) and is_known(module):
            return lambda: None  # operators never write in place
    elif isinstance(node.target, OpOverload):
        return _plain_overload(node, node.target)
    elif node.op == "call_function":
        if node.kwargs.get("out") is not None or node.target is operator.setitem:
            raise WriteToView(module_path(node), node, "to a tensor that exists already")
        if node.target in OUT_OF_PLACE:
            return lambda: setattr(node, "target", OUT_OF_PLACE[node.target])
        name = getattr(node.target, "__name__", "")
        for home in (F, torch):
            plain_function = (
                getattr(home, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
            )
            if plain_function is not None:
                return lambda: setattr(node, "target", plain_function)
        if node.kwargs.get("inplace"):
            return lambda: setattr(node, "kwargs", {**node.kwargs, "inplace": False})
        if (
            name in ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "mish", "elu", "selu")
            and node.args[-1] is True
        ):
            return lambda: setattr(node, "args", (*node.args[:-1], False))
    return None


def _plain_overload(node: fx.Node, target: OpOverload) -> Callable[[], None] | None:
    """aten.relu_.default -> aten.relu.default"""
    if not target._schema.is_mutable:
        return None
    name = target._schema.name.partition("::")[2]
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None)
    if overload is None:
        raise WriteToView(module_path(node), node, f"by {name}, which has no out-of-place spelling")
    return lambda: setattr(node, "target", overload)


def _may_share(node: fx.Node) -> bool:
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return not is_known(module)
    if isinstance(node.target, OpOverload):
        operator_name = node.target._schema.name.partition("::")[2]
        return operator_name in _VIEWS or any(result.alias_info for result in node.target._schema.returns)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _VIEWS


def module_path(node: fx.Node) -> str:
    """The path of the module whose forward made `node`; "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return paths[-1] if paths else ""
