"""How many dimensions the values of a graph have, asked while it is traced.

A network may go by that in Python, `if x.dim() == 3` or `*x.shape[2:]`, and still be one graph for all sizes of frames.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode


class Ranks:
    """Runs what is traced so far on tensors without values; each call goes on where the last one stopped."""

    def __init__(self, root: nn.Module, frames: Sequence[Tensor]):
        self._root, self._frames = root, frames
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._run: fx.Interpreter | None = None

    def of(self, node: fx.Node) -> int | None:
        """The dimensions of a tensor; None for other values, and where values would have to be known to tell."""
        if self._run is None:
            self._run = fx.Interpreter(self._root, garbage_collect_values=False, graph=node.graph)
            self._run.args_iter = iter([self._mode.from_tensor(frame) for frame in self._frames])
        try:
            with self._mode:
                for each in list(node.graph.nodes):
                    if each not in self._run.env:
                        self._run.env[each] = self._run.run_node(each)
        except Exception:
            return None
        value = self._run.env[node]
        return value.dim() if isinstance(value, Tensor) else None


def sized_by(node: fx.Node) -> tuple[fx.Node, slice] | None:
    """(x, part) where a node is x.shape or x.size(), or a slice of it; None for every other."""
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return node.args[0], slice(None)
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs:
        return node.args[0], slice(None)
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], slice):
        whole = sized_by(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        return whole and (whole[0], node.args[1]) if whole and whole[1] == slice(None) else None
    return None
