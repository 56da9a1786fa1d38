"""Calls of modules, functions and methods become operators, one instance per call site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.nodes import attribute_of, is_call, is_size, name_called, operator_of, path_of
from deltaconvert.ops.base import Operator, StaysDense, find, known_modules
from deltaconvert.passes.propagate import LIKE, TYPES


def adopt_operators(gm: fx.GraphModule) -> fx.GraphModule:
    """Give every call that deltaconvert knows its one spelling; the others learn why they stay dense.

    before:  relu(x) [a module used twice]   F.relu(x, inplace=True)   x.relu()
    after:   Pointwise("relu")(x), a fresh instance for each

    before:  y = conv(x) [padding_mode="reflect"]
    after:   p = Pad("reflect")(x);  y = Conv2d(p)
    """
    weights: set[fx.Node] = set()  # weights, and what follows from them, sizes and types alone
    for node in list(gm.graph.nodes):
        if node.op == "get_attr":
            weights.add(node)
        if not is_call(node) or operator_of(node) is not None:
            continue
        follows = _follows(node, weights)
        try:
            operator, inputs = _spelled(gm, node, set() if follows else weights)
        except StaysDense as reason:
            node.meta["why_dense"] = str(reason)
        else:
            node = adopt(gm, node, operator, _reads(gm, node, path_of(node), inputs))
        if follows:
            weights.add(node)
    gm.graph.eliminate_dead_code()
    return gm


def _spelled(gm: fx.GraphModule, node: fx.Node, weights: set[fx.Node]) -> tuple[Operator, list[Any]]:
    """The operator of a call and its inputs, as the spelling of ops/ returns them. StaysDense where there is none, or
    where the call reads `weights`, or no map."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    spelling = find(node.target if module is None else module)
    if spelling is None:
        raise StaysDense(node.meta.get("why_dense") or _unknown(node, module))  # tracing may know better
    args, kwargs = fx.map_arg(
        (node.args, node.kwargs), lambda n: attribute_of(n) if n.op == "get_attr" else n
    )
    try:
        operator, inputs = spelling(*args, **kwargs) if module is None else spelling(module, *args, **kwargs)
    except TypeError as error:  # a call that the spelling's signature does not take
        raise StaysDense(f"its call is unusual: {error}") from error
    for each in _operators(operator, inputs):
        _check_settings(each)
    reads = list(_read_by(inputs))
    if not reads or not all(isinstance(read, fx.Node) for read in reads):
        raise StaysDense("it reads no map")
    if any(map(is_size, reads)):  # x * x.shape[1]: a number, once the plan has folded constants
        raise StaysDense("it reads a size")
    if not weights.isdisjoint(reads):  # x * weight.relu(): likewise
        raise StaysDense("it reads what follows from weights")
    return operator, inputs


def _check_settings(operator: Operator) -> None:
    """F.conv2d(x, weight, groups=x.shape[1]): a number, once the plan has folded constants."""
    for name, setting in operator.settings().items():
        if any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(setting)):
            raise StaysDense(f"its {name} is computed in every frame")


def adopt(gm: fx.GraphModule, node: fx.Node, operator: Operator, inputs: list[Any]) -> fx.Node:
    """Replace `node` by a call of `operator`; it keeps its name, its place and what is known of it."""
    call = _call(gm, node, node.name, operator, inputs)
    call.meta = {key: value for key, value in node.meta.items() if key != "why_dense"}
    name = node.name
    node.replace_all_uses_with(call)
    gm.graph.erase_node(node)
    call._rename(name)
    return call


def _operators(operator: Operator, inputs: Sequence[Any]) -> Iterator[Operator]:
    """The operator of a call, and those before it that are its part."""
    yield operator
    for part in inputs:
        yield from _operators(*part) if isinstance(part, tuple) else ()


def _read_by(inputs: Sequence[Any]) -> Iterator[Any]:
    """The inputs of a call, or what operators before it read."""
    for part in inputs:
        yield from _read_by(part[1]) if isinstance(part, tuple) else [part]


def _reads(gm: fx.GraphModule, node: fx.Node, path: str, inputs: Sequence[Any]) -> list[Any]:
    """The inputs of a call as nodes, with the operators before it put into the graph."""
    return [_before(gm, node, path, *part) if isinstance(part, tuple) else part for part in inputs]


def _before(gm: fx.GraphModule, node: fx.Node, path: str, operator: Operator, inputs: list[Any]) -> fx.Node:
    """A call of `operator` before `node`, whose part it is: threshold rules for `node` apply to it as well. path: of
    what reads it."""
    kind = type(operator).__name__.lower()
    reads = _reads(gm, node, f"{path}.{kind}", inputs)
    call = _call(gm, node, f"{node.name}_{kind}", operator, reads)
    call.meta = {"path": f"{path}.{kind}", "parts": (path_of(node),), **_known(operator, reads)}
    return call


def _known(operator: Operator, reads: Sequence[fx.Node]) -> dict[str, Any]:
    """What propagate would see of the result, once it has been."""
    if not all({"shape", "dtype", "device"} <= read.meta.keys() for read in reads):
        return {}
    of_reads = [(read.meta["shape"], read.meta["dtype"], read.meta["device"]) for read in reads]
    with torch.no_grad():
        result = operator(*(torch.zeros((), dtype=t, device=on).expand(size) for size, t, on in of_reads))
    return {"shape": tuple(result.shape), "dtype": result.dtype, "device": result.device}


def _call(gm: fx.GraphModule, node: fx.Node, name: str, operator: Operator, inputs: list[Any]) -> fx.Node:
    target = f"operators.{name}"
    while not _is_free(gm, target, node):
        target += "_"
    gm.add_submodule(target, operator)
    with gm.graph.inserting_before(node):
        return gm.graph.call_module(target, tuple(inputs))


def _is_free(gm: fx.GraphModule, target: str, node: fx.Node) -> bool:
    """No module has that name, of the network or of another node: a copied graph may hand out names anew."""
    if hasattr(nn.Module, target.rpartition(".")[2]):  # x.to, x.half
        return False
    try:
        module = gm.get_submodule(target)
    except AttributeError:
        return True
    return target == node.target and isinstance(module, Operator)


def _follows(node: fx.Node, weights: set[fx.Node]) -> bool:
    """The value is made of `weights`, sizes and types, so that it is the same in every frame."""
    read = node.all_input_nodes
    if node.target in ("to", "type_as"):
        read = read[:1]  # weight.to(x) takes the type of x and no values
    if name_called(node) in LIKE:  # x.new_tensor([0.1, 0.2]) likewise, torch.zeros_like(x) its size as well
        return all(n in weights or is_size(n) for n in read[1:])
    return bool(read) and not is_size(node) and all(n in weights or is_size(n) or _is_type(n) for n in read)


def _is_type(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in TYPES


def _unknown(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None and type(module) in known_modules():
        return f"this {type(module).__name__} has hooks or a forward of its own"
    if module is not None:
        return f"deltaconvert has no operator for {type(module).__name__}"
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))
    if name == "wrap_with_autocast":  # torch.export's
        return "it runs under torch.autocast"
    home = getattr(node.target, "__module__", None)
    if home == "torch._ops.quantized" or name.startswith("quantize_") or name == "dequantize":
        return f"{name} is quantised"
    return f"deltaconvert has no operator for {name}"
