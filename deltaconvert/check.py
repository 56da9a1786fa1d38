"""What a legal graph is. check_graph runs after every pass, so that a broken graph names the pass that broke it."""

from __future__ import annotations

from torch import fx

from deltaconvert.errors import GraphError
from deltaconvert.nodes import densify, is_delta, operator_of, sparsify


def check_graph(gm: fx.GraphModule, after: str) -> None:
    """Raise GraphError, naming the pass `after`, if `gm` breaks an invariant.

    * every node is defined before it is used, and every call_module target exists
    * operators take positional inputs only, and each operator instance has one call site
    * once planned (the graph has a sparsify): delta nodes read deltas, all others read dense values, the outputs
      are dense, and only a sparsify or a delta node has a threshold
    """

    gm.graph.lint()
    _check_operators(gm, after)
    if any(node.target is sparsify for node in gm.graph.nodes):
        _check_deltas(gm, after)


def _check_operators(gm: fx.GraphModule, after: str) -> None:
    seen: dict[int, fx.Node] = {}
    for node in gm.graph.nodes:
        operator = operator_of(node)
        if operator is None:
            continue
        if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            raise _broken(after, node, "is an operator with inputs that are no nodes")
        if id(operator) in seen:
            raise _broken(after, node, f"shares its operator with {seen[id(operator)].name}")
        seen[id(operator)] = node


def _check_deltas(gm: fx.GraphModule, after: str) -> None:
    for node in gm.graph.nodes:
        wants_delta = node.target is densify or node.meta.get("delta", False)
        for source in node.all_input_nodes:
            if is_delta(source) != wants_delta:
                kind = "a delta" if is_delta(source) else "dense"
                raise _broken(after, node, f"reads {source.name}, which is {kind}")
        if "threshold" in node.meta and not is_delta(node):
            raise _broken(after, node, "is dense and has a threshold")


def _broken(after: str, node: fx.Node, what: str) -> GraphError:
    return GraphError(f"after {after}: node {node.name} ({node.format_node()}) {what}")
