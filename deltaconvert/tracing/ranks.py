"""The ranks and sizes of a graph's values, asked for while it is traced.

A network may decide by them in Python and still be one graph for all sizes of frames (`if x.dim() == 3`,
`*x.shape[2:]`, `assert x.shape[1] == 3`), or for all sizes with the same answer (`if x.shape[2] % 8`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deltaconvert.ops.base import is_known
from deltaconvert.tracing.quiet import without_logs


class Ranks:
    """Runs the graph as far as it is traced on fake tensors; each call goes on where the last one stopped."""

    def __init__(self, root: nn.Module, frames: Sequence[Tensor]):
        self._root, self._frames = root, frames
        self._run: fx.Interpreter | None = None
        self._unknown: set[fx.Node] = set()

    def value(self, node: fx.Node) -> Any:
        """A number or a fake tensor; None where it cannot be told."""
        if node.op == "placeholder":
            return self._frames[list(node.graph.nodes).index(node)]
        if self._run is None:  # made late: the mode imports torch's compiler (seconds), and few networks ask
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            self._run = fx.Interpreter(self._root, garbage_collect_values=False, graph=node.graph)
            self._run.args_iter = iter([self._mode.from_tensor(frame) for frame in self._frames])
        with self._mode, without_logs():
            for each in list(node.graph.nodes):
                if each not in self._run.env and each not in self._unknown:
                    self._look_at(each, self._run)
        return self._run.env.get(node)

    def _look_at(self, node: fx.Node, run: fx.Interpreter) -> None:
        # A module that stays whole might keep what it saw.
        whole = node.op == "call_module" and not is_known(self._root.get_submodule(str(node.target)))
        if whole or not self._unknown.isdisjoint(node.all_input_nodes):
            self._unknown.add(node)
            return
        try:
            run.env[node] = run.run_node(node)
        except Exception:
            self._unknown.add(node)


def sized_by(node: fx.Node) -> tuple[fx.Node, slice] | None:
    """(x, part) where a node is x.shape or x.size(), or a slice of it; None for every other."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    attribute = node.target is getattr and node.args[1] == "shape"
    method = node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs
    if attribute or method:
        return source, slice(None)
    if node.target is not operator.getitem or not isinstance(node.args[1], slice):
        return None
    part, whole = node.args[1], sized_by(source)
    plain = all(isinstance(at, int | None) for at in (part.start, part.stop, part.step))
    return (whole[0], part) if plain and whole is not None and whole[1] == slice(None) else None
