"""Loose sizes follow from values: those of x[x > 0], of nonzero, of boxes that were kept, and of what is made of them.

They change from frame to frame, and a plan holds for one size. So the call that makes such a size is run again with one
row less in its result, and so is everything that reads it: results whose size differs then are loose as well.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from deltaconvert.nodes import is_call, is_foreign_function, name_called, operator_of
from deltaconvert.ops.base import is_known

# The first dimension of their results is as long as values of a kind were found.
_PICKS = (
    "nonzero argwhere where masked_select unique unique_consecutive _unique2 bincount repeat_interleave nms batched_nms"
).split()
_UNKNOWN = object()  # a call that failed with a row less, such as a reshape to the size of the example


class Loose(fx.Interpreter):
    """An interpreter that tells of each value whether its size is loose."""

    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm)
        self._others: dict[fx.Node, Any] = {}  # loose values with a row less

    def is_loose(self, node: fx.Node, value: Any, is_constant: bool) -> bool:
        """Whether `value`, which `node` has just given, is a number or has a size that can differ in the next frame.

        is_constant: it follows from weights and from sizes, some of which may be loose.
        """
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
        """The value with a row less, if `node` makes loose sizes of settled ones; else the value itself."""
        name = _name(node)
        if type(value) is int:  # x.sum().item(), which may be used as a size
            return value + 1
        if name in _PICKS and not self._is_settled(node, name):
            return pytree.tree_map_only(Tensor, _one_less, value)
        inputs = {source: self.env[source] for source in node.all_input_nodes}
        masks = {source: _one_true_less(x) for source, x in inputs.items() if _is_mask(x)}
        if name in ("getitem", "index") and masks:
            return self._again(node, masks)
        if is_foreign(node) and any(user.op != "output" for user in node.users):
            # What it does is unknown: run it on another frame.
            other = self._again(node, pytree.tree_map_only(Tensor, _negated, inputs))
            return value if other is _UNKNOWN else other
        return value

    def _again(self, node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
        """The result of `node` with some of its inputs replaced."""
        given = {source: inputs.get(source, self.env[source]) for source in node.all_input_nodes}
        if not any(value is _UNKNOWN for value in given.values()):
            with suppress(Exception):
                args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
                return getattr(self, node.op)(node.target, args, kwargs)
        return _UNKNOWN

    def _is_settled(self, node: fx.Node, name: str) -> bool:
        """The size of the result follows from those of the inputs in this form of the call: where(mask, x, y)."""
        if name == "where":
            return len(node.args) + len(node.kwargs) > 1
        if name != "repeat_interleave":
            return False
        if "output_size" in node.kwargs:
            return True
        (repeats,) = (*node.args, node.kwargs.get("repeats"))[1:2]
        if not isinstance(repeats, fx.Node):
            return type(repeats) is int
        # A number follows from sizes here; loose ones do not get this far.
        return type(self.env[repeats]) is int or repeats.meta["is_constant"]


def is_foreign(node: fx.Node) -> bool:
    """It is the network's own code, or an operator of another library."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return operator_of(node) is None and not is_known(module)
    if isinstance(node.target, OpOverload):
        return node.target.namespace not in ("aten", "prims", "deltaconvert")
    return node.op == "call_function" and is_foreign_function(node.target)


def _name(node: fx.Node) -> str:
    """nms for the operator nms.default."""
    return name_called(node).partition(".")[0]


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) and x.dim() > 0


def _one_true_less(mask: Tensor) -> Tensor:
    """The mask with its first true value cleared; with one set, if there is none."""
    other = mask.clone(memory_format=torch.contiguous_format)
    true = other.view(-1).nonzero()[:1]
    other.view(-1)[true if len(true) else slice(1)] = not len(true)
    return other


def _one_less(x: Tensor) -> Tensor:
    """x without its last row; two rows of zeros, if it has one or none."""
    return x[:-1] if x.dim() and len(x) > 1 else x.new_zeros((2, *x.shape[1:]))


def _negated(x: Tensor) -> Tensor:
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
