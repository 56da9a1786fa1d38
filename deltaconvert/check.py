"""What a legal graph is. check_graph runs after every pass, so that a broken graph names the pass that broke it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from deltaconvert.errors import GraphError
from deltaconvert.ops.base import Operator


def sparsify(x: torch.Tensor) -> torch.Tensor:
    """Dense -> delta: compare with the stored map, store, mark. As a function of one frame it is the identity."""
    return x


def densify(x: torch.Tensor) -> torch.Tensor:
    """Delta -> dense: the stored map as an ordinary tensor. As a function of one frame it is the identity."""
    return x


def operator_of(node: fx.Node) -> Operator | None:
    """The operator that a node calls; None for every other node."""
    if node.op != "call_module":
        return None
    module = node.graph.owning_module.get_submodule(str(node.target))
    return module if isinstance(module, Operator) else None


def attribute_of(node: fx.Node) -> Any:
    """What a get_attr node reads: a weight without its gradients, or now and then something that is no tensor."""
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, torch.Tensor) else value


def is_delta(node: fx.Node) -> bool:
    """The node's value is a delta: a stored map and its mask."""
    return node.target is sparsify or node.meta.get("delta", False)


def is_call(node: fx.Node) -> bool:
    """It computes something; the others are inputs, weights and the output."""
    return node.op in ("call_function", "call_method", "call_module")


def path_of(node: fx.Node) -> str:
    """What reports and masks call a node: the path of the module that it comes from, where it has one."""
    return node.meta.get("path", node.name)


def names_of(node: fx.Node) -> tuple[str, ...]:
    """The paths that a node goes by in rules: its own, and those of the calls that became part of it."""
    return tuple(dict.fromkeys((path_of(node), *node.meta.get("parts", ()))))


def check_graph(gm: fx.GraphModule, after: str) -> None:
    """Raise GraphError, naming the pass `after`, if `gm` breaks an invariant.

    * every node is defined before it is used, and every call_module target exists
    * operators take positional inputs only, and each operator instance has one call site
    * once planned (the graph has a sparsify): delta nodes read deltas, all others read dense values, the outputs
      are dense, and only a sparsify or a delta node has a threshold
    """

    def broken(node: fx.Node, what: str) -> GraphError:
        return GraphError(f"after {after}: node {node.name} ({node.format_node()}) {what}")

    gm.graph.lint()
    seen: dict[int, fx.Node] = {}
    for node in gm.graph.nodes:
        operator = operator_of(node)
        if operator is None:
            continue
        if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            raise broken(node, "is an operator with inputs that are no nodes")
        if id(operator) in seen:
            raise broken(node, f"shares its operator with {seen[id(operator)].name}")
        seen[id(operator)] = node
    if not any(node.target is sparsify for node in gm.graph.nodes):
        return
    for node in gm.graph.nodes:
        wants_delta = node.target is densify or node.meta.get("delta", False)
        for source in node.all_input_nodes:
            if is_delta(source) != wants_delta:
                raise broken(
                    node, f"reads {source.name}, which is {'a delta' if is_delta(source) else 'dense'}"
                )
        if "threshold" in node.meta and not is_delta(node):
            raise broken(node, "is dense and has a threshold")
