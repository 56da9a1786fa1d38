"""In-place writes become values of their own."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload

from deltaconvert.nodes import name_called
from deltaconvert.ops.base import is_known
from deltaconvert.ops.put import put

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
# Functions of torch.nn.functional whose last positional argument may be `inplace`.
_INPLACE_LAST = ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "mish", "elu", "selu")
# Calls whose result may share memory with their input.
_VIEWS = frozenset(
    "view reshape flatten squeeze unsqueeze transpose permute expand expand_as narrow select chunk split tensor_split "
    "unbind getitem detach contiguous to float half double type view_as reshape_as t swapaxes movedim diagonal unfold "
    "dropout feature_dropout".split()
)

# x.gt_(y) writes ones and zeros of the type of x; what x > y gives are truth values.
_TRUTHS = frozenset(
    "gt lt ge le eq ne greater less greater_equal less_equal not_equal logical_and logical_or logical_xor "
    "logical_not".split()
)

Rewrite = Callable[[], None]


class WriteToView(Exception):
    """A write that cannot become a value of its own; `path` is the module that makes it, "" for the root."""

    def __init__(self, path: str, node: fx.Node, how: str = "to memory that is read through another view"):
        super().__init__(f"writes in place ({node.name}) {how}")
        self.path = path


def functionalise(gm: fx.GraphModule) -> fx.GraphModule:
    """Give every in-place write its out-of-place spelling; later readers read its result.

    What a run on the example has shown (tracing/writes.py) takes precedence over the names of calls: meta["rebinds"],
    x in x += y is no tensor, so nothing is written; meta["unseen"], no value that is read later shares the memory;
    meta["views"] and meta["is_same"], whose memory a result is; meta["keeps"], the type of x where x + y has another.

    before:  y = conv(x);  r = relu_(y);  z = add(y, s)
    after:   y = conv(x);  r = relu(y);   z = add(r, s)

    before:  v = y[:, :2];  w = relu_(v);  y[..., 0] = 1;         z = add(y, s)
    after:   v = y[:, :2];  w = relu(v);   p = put(y, (:, :2), w);  q = put(p, (..., 0), 1);  z = add(q, s)
    """
    writes = _Writes(gm.graph)
    for node in list(gm.graph.nodes):
        rewrite = _in_place(node)
        if rewrite is not None and node.meta.get("rebinds"):
            rewrite()
            rewrite = None
        if rewrite is None:
            writes.note(node)
        else:
            writes.make(node, rewrite)
    return gm


class _Writes:
    """Which values share memory, and what a write to one of them means for the others."""

    def __init__(self, graph: fx.Graph):
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._root: dict[fx.Node, fx.Node] = {}  # the first node of the memory a node may share
        self._members: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        self._part_of: dict[fx.Node, tuple[fx.Node, Any]] = {}  # y[:, 0:2] -> y, (:, 0:2)

    def note(self, node: fx.Node) -> None:
        """Note whose memory the result of a node is; the node writes nothing."""
        source = node.meta.get("views")
        if source is None and may_share(node):
            source = next(iter(node.all_input_nodes), None)
        self._join(node, node if source is None else self._root[source])
        if source is not None and node.meta.get("is_same"):
            self._part_of[node] = source, Ellipsis
        if node.op == "call_function" and node.target is operator.getitem and _is_slice(node.args[1]):
            self._part_of[node] = node.args[0], node.args[1]  # type: ignore[assignment]

    def make(self, node: fx.Node, rewrite: Rewrite) -> None:
        """`node` writes to its first input. `rewrite` makes the result a value of its own; wholes that it is part of
        get a put."""
        written = node.args[0]
        assert isinstance(written, fx.Node)
        wholes = [] if node.meta.get("unseen") else self._wholes(written, node)
        for other in self._members[self._root[written]]:
            if node.meta.get("unseen") or other is written or other in (whole for whole, _ in wholes):
                continue
            if self._is_read_after(other, node):
                raise WriteToView(module_path(node), node)
        if node.target is operator.setitem and _is_put_already(node):  # y[:, 0] *= 2 sets what it has written
            node.replace_all_uses_with(written)
            node.graph.erase_node(node)
            return
        rewrite()
        result = part = _in_the_type_written(node)
        self._order[result] = self._order[node]
        self._replace(written, result, node)
        for whole, index in wholes:
            with node.graph.inserting_after(part):
                changed = node.graph.call_function(put, (whole, index, part))
            changed.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
            self._order[changed] = self._order[node]
            self._replace(whole, changed, node)
            self._part_of[part] = changed, index
            part = changed
        self._join(part, part)
        while part is not result:
            part = next(inner for inner, (whole, _) in self._part_of.items() if whole is part)
            self._join(part, self._root[self._part_of[part][0]])

    def _wholes(self, part: fx.Node, node: fx.Node) -> list[tuple[fx.Node, Any]]:
        """What `part` is a part of, and so on outwards, up to the last one that is read after `node`."""
        found = []
        while part in self._part_of:
            found.append(self._part_of[part])
            part = found[-1][0]
        while found and not self._is_read_after(found[-1][0], node):
            found.pop()
        return found

    def _is_read_after(self, value: fx.Node, node: fx.Node) -> bool:
        return any(self._order[user] > self._order[node] for user in value.users)

    def _replace(self, old: fx.Node, new: fx.Node, node: fx.Node) -> None:
        for user in list(old.users):
            if self._order[user] > self._order[node]:
                user.replace_input_with(old, new)

    def _join(self, node: fx.Node, root: fx.Node) -> None:
        self._root[node] = root
        self._members[root].append(node)


def makes_truths(node: fx.Node) -> bool:
    name = name_called(node).partition(".")[0]  # gt_, also of the operator gt_.Scalar
    return name.rstrip("_") in _TRUTHS


def kept_type(node: fx.Node, written: Any, others: Sequence[Any]) -> torch.dtype | None:
    """The type of what `node` writes to, where it is not that of what it makes with the others: half += float."""
    values = [value for value in (written, *others) if isinstance(value, Tensor)]
    if not isinstance(written, Tensor):
        return None
    makes = [torch.bool] if makes_truths(node) else [torch.result_type(written, value) for value in values]
    return None if all(dtype == written.dtype for dtype in makes) else written.dtype


def _in_the_type_written(node: fx.Node) -> fx.Node:
    """`node`; or a cast behind it, if its result does not have the type of the tensor that it writes to."""
    values = [source.meta.get("val") for source in node.all_input_nodes]  # torch.export knows them
    kept = node.meta.get("keeps") or kept_type(node, values[0], values[1:])
    if kept is None or node.target is put:  # put keeps the type by itself
        return node
    with node.graph.inserting_after(node):
        cast = node.graph.call_method("to", (node, kept))
    cast.meta = {key: node.meta[key] for key in ("nn_module_stack", "val") if key in node.meta}
    node.replace_all_uses_with(cast, lambda user: user is not cast)
    return cast


def _is_slice(index: Any) -> bool:
    """Indexing by numbers and slices gives a view. Not by tensors, lists or names; and chunks[0], a number alone, may
    pick from a tuple."""
    parts = index if isinstance(index, tuple) else (index,)
    return not isinstance(index, int) and all(
        isinstance(part, slice | int) or part is None or part is Ellipsis for part in parts
    )


def _is_put_already(node: fx.Node) -> bool:
    written = node.args[0]
    return isinstance(written, fx.Node) and written.target is put and written.args[1:] == node.args[1:]


def writes_in_place(node: fx.Node) -> bool:
    return _in_place(node) is not None


def _in_place(node: fx.Node) -> Rewrite | None:
    """None, or a function that makes `node` write to memory of its own."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_method":
        return _plain_method(node, str(node.target))
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        writes = getattr(module, "inplace", False) and is_known(module)
        return (lambda: None) if writes else None  # operators never write in place
    if isinstance(node.target, OpOverload):
        return _plain_overload(node, node.target)
    return _plain_function(node, node.target) if node.op == "call_function" else None


def _plain_method(node: fx.Node, name: str) -> Rewrite | None:
    """x.relu_() -> x.relu();  x.zero_() -> put(x, ..., 0)"""
    if name in ("zero_", "fill_", "copy_"):
        return lambda: _put_all(node)
    if not says_in_place(name):
        return None
    if not callable(getattr(torch.Tensor, name[:-1], None)):
        raise WriteToView(module_path(node), node, f"by {name}, which has no out-of-place spelling")
    return lambda: setattr(node, "target", name[:-1])


def _plain_function(node: fx.Node, target: Any) -> Rewrite | None:
    """x[i] = y -> put(x, i, y);  x += y -> x + y;  relu_(x), relu(x, inplace=True) -> relu(x)"""
    if target is operator.setitem:
        return lambda: setattr(node, "target", put)
    if node.kwargs.get("out") is not None:
        raise WriteToView(module_path(node), node, "to a tensor that exists already")
    plain, name = OUT_OF_PLACE.get(target), getattr(target, "__name__", "")
    if plain is None and says_in_place(name):
        plain = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
    if plain is not None:
        return lambda: setattr(node, "target", plain)
    if node.kwargs.get("inplace"):
        return lambda: setattr(node, "kwargs", {**node.kwargs, "inplace": False})
    if name in _INPLACE_LAST and node.args[-1] is True:
        return lambda: setattr(node, "args", (*node.args[:-1], False))
    return None


def says_in_place(name: str) -> bool:
    """torch's names for writes in place: relu_, add_."""
    return name.endswith("_") and not name.endswith("__")


def _put_all(node: fx.Node) -> None:
    """x.copy_(y) -> put(x, ..., y)"""
    value: Any = next(iter((*node.args[1:], *node.kwargs.values())), 0)
    node.op, node.target, node.kwargs = "call_function", put, {}
    node.args = (node.args[0], Ellipsis, value)  # type: ignore[assignment]


def _plain_overload(node: fx.Node, target: OpOverload) -> Rewrite | None:
    """aten.relu_.default -> aten.relu.default"""
    if not target._schema.is_mutable:
        return None
    name = target._schema.name.partition("::")[2]
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None)
    if overload is None:
        raise WriteToView(module_path(node), node, f"by {name}, which has no out-of-place spelling")
    return lambda: setattr(node, "target", overload)


def may_share(node: fx.Node) -> bool:
    """Its name says that its result may share memory with its first input."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return not is_known(module)
    if isinstance(node.target, OpOverload):
        operator_name = node.target._schema.name.partition("::")[2]
        return operator_name in _VIEWS or any(result.alias_info for result in node.target._schema.returns)
    return node.op in ("call_method", "call_function") and name_called(node) in _VIEWS


def module_path(node: fx.Node) -> str:
    """The path of the module whose forward made `node`; "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return paths[-1] if paths else ""
