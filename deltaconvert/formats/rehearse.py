"""A graph from a file runs once without memory before it runs in earnest.

A file of a few kilobytes can ask for a padding of a terabyte. On torch's meta device the same calls only
compute shapes, so the largest value is known before any is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deltaconvert.errors import ContainerError

MAX_ELEMENTS = 2**31  # of one value: 8 GB in single precision
# Their size depends on the values of their input, which meta tensors lack; it can exceed every bound.
_UNBOUNDED = ("repeat_interleave",)


def rehearse(meta: fx.GraphModule, frames: Sequence[Tensor]) -> None:
    """ContainerError if some value of a graph, called on inputs like `frames`, would have over 2**31
    elements.

    meta: the graph, its weights on the meta device. Where the size of a value depends on other values
    (nonzero, a boolean index), what comes after it is not followed.
    """
    with torch.no_grad():
        _Rehearsal(meta).run(*(torch.empty_like(frame, device="meta") for frame in frames))


class _Unknown:
    """A value that meta tensors cannot tell."""


class _Rehearsal(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        if any(isinstance(self.env.get(source), _Unknown) for source in node.all_input_nodes):
            return _Unknown()
        try:
            value = super().run_node(node)
        except Exception:
            if any(name in str(node.target) for name in _UNBOUNDED):
                raise ContainerError(f"{node.name} makes a value whose size cannot be checked") from None
            return _Unknown()  # the real run says what is wrong, if anything is
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.numel() > MAX_ELEMENTS:
                size = "x".join(map(str, leaf.shape))
                raise ContainerError(f"{node.name} makes a value of {size}: over {MAX_ELEMENTS} elements")
        return value

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        here = torch.device("meta")
        return pytree.tree_map(lambda v: here if isinstance(v, torch.device) else v, (args, kwargs))
