"""Loose sizes follow from values: those of x[x > 0], of nonzero, of boxes that were kept, and of what is made of them.

They change from frame to frame, where a plan holds for one size. What makes one is run once more with a place less, and
so is all that reads it: what comes out in another size is loose, too.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from deltaconvert.nodes import is_call, name_called, operator_of
from deltaconvert.ops.base import is_known

# Their results have as many places along the first dimension as values of a kind were found.
_PICKS = (
    "nonzero argwhere where masked_select unique unique_consecutive _unique2 bincount repeat_interleave nms batched_nms"
).split()
_HOMES = ("torch", "builtins", "_operator", "math", "deltaconvert")
_UNKNOWN = object()  # what did not run with a place less: a reshape to the size that was seen, say


class Loose(fx.Interpreter):
    """An interpreter that tells of each value whether its size is loose."""

    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm)
        self._others: dict[fx.Node, Any] = {}  # of loose values: with a place less

    def is_loose(self, node: fx.Node, value: Any, is_constant: bool) -> bool:
        """`node` has just run and gave `value`: a tensor whose size, or a number which, can be another in the next
        frame. is_constant: it follows from weights and from sizes, some of which may be loose."""
        if not is_call(node):
            return False
        if not self._others.keys().isdisjoint(node.all_input_nodes):
            other = self._again(node, self._others)
        else:
            other = value if is_constant else self._made_loose(node, value)
        if _alike(value, other):
            return False
        self._others[node] = other
        return True

    def _made_loose(self, node: fx.Node, value: Any) -> Any:
        """The value with a place less, if `node` makes loose sizes of others; else the value itself."""
        name = _name(node)
        if type(value) is int:  # x.sum().item(), which may come to be a size
            return value + 1
        if name in _PICKS and not self._is_settled(node, name):
            return pytree.tree_map_only(Tensor, _one_less, value)
        inputs = {source: self.env[source] for source in node.all_input_nodes}
        masks = {source: _one_true_less(x) for source, x in inputs.items() if _is_mask(x)}
        if name in ("getitem", "index") and masks:
            return self._again(node, masks)
        if is_foreign(node) and any(user.op != "output" for user in node.users):
            # Nobody knows what it does: another frame tells.
            other = self._again(node, pytree.tree_map_only(Tensor, _turned, inputs))
            return value if other is _UNKNOWN else other
        return value

    def _again(self, node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
        """What `node` gives with some of its inputs replaced."""
        given = {source: inputs.get(source, self.env[source]) for source in node.all_input_nodes}
        if not any(value is _UNKNOWN for value in given.values()):
            with suppress(Exception):
                args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
                return getattr(self, node.op)(node.target, args, kwargs)
        return _UNKNOWN

    def _is_settled(self, node: fx.Node, name: str) -> bool:
        """The call is the one of that name whose result has a size that follows from those of its inputs."""
        if name == "where":
            return len(node.args) + len(node.kwargs) > 1
        if name != "repeat_interleave":
            return False
        if "output_size" in node.kwargs:
            return True
        (repeats,) = (*node.args, node.kwargs.get("repeats"))[1:2]
        if not isinstance(repeats, fx.Node):
            return type(repeats) is int
        # Numbers follow from sizes here: a loose one is not asked about.
        return type(self.env[repeats]) is int or repeats.meta["is_constant"]


def is_foreign(node: fx.Node) -> bool:
    """It is the network's own code, or an operator of another library."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return operator_of(node) is None and not is_known(module)
    if isinstance(node.target, OpOverload):
        return node.target.namespace not in ("aten", "prims", "deltaconvert")
    home = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    return node.op == "call_function" and home not in _HOMES


def _name(node: fx.Node) -> str:
    """nms for the operator nms.default."""
    return name_called(node).partition(".")[0]


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) and x.dim() > 0


def _one_true_less(mask: Tensor) -> Tensor:
    """One more where there is none."""
    other = mask.clone(memory_format=torch.contiguous_format)
    true = other.view(-1).nonzero()[:1]
    other.view(-1)[true if len(true) else slice(1)] = not len(true)
    return other


def _one_less(x: Tensor) -> Tensor:
    """One more where there is one or none."""
    return x[:-1] if x.dim() and len(x) > 1 else x.new_zeros((2, *x.shape[1:]))


def _turned(x: Tensor) -> Tensor:
    return -x if x.is_floating_point() else x.clone()


def _alike(value: Any, other: Any) -> bool:
    """Of the same sizes, and the same number where it is one."""
    if value is other:
        return True
    ours, theirs = pytree.tree_leaves(value), pytree.tree_leaves(other)
    return len(ours) == len(theirs) and all(map(_same_size, ours, theirs))


def _same_size(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    return type(a) is type(b) and (not isinstance(a, int) or a == b)
