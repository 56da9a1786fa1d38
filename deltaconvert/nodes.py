"""What a node of a graph is: an operator's call, a delta, a conversion; and the paths that people know it by."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

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


# Parts of the names of functions that give other results for the same inputs.
_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "dropout", "poisson", "exponential", "empty")
_KNOWN_HOMES = ("torch", "builtins", "_operator", "math", "deltaconvert")


def is_random(name: str) -> bool:
    return any(part in name for part in _RANDOM) and name != "normalize"


def is_foreign_function(function: Any) -> bool:
    """It is neither torch's nor Python's: torch.fx.wrap keeps a network's own functions whole."""
    home = getattr(function, "__module__", None) or "torch"  # torch's built-in functions do not say
    return home.partition(".")[0] not in _KNOWN_HOMES


def name_called(node: fx.Node) -> str:
    """relu of x.relu() and of torch.relu(x); "" where no function or method with a name is called."""
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def is_size(node: fx.Node) -> bool:
    """The value is a number that follows from the size of a tensor."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension")
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    plain = getattr(node.target, "__module__", None) in ("_operator", "math", "builtins")
    return plain and all(map(is_size, node.all_input_nodes))


def path_of(node: fx.Node) -> str:
    """What reports and masks call a node: the path of the module that it comes from, where it has one."""
    return node.meta.get("path", node.name)


def names_of(node: fx.Node) -> tuple[str, ...]:
    """The paths that a node goes by in rules: its own, and those of the calls that became part of it."""
    return tuple(dict.fromkeys((path_of(node), *node.meta.get("parts", ()))))
