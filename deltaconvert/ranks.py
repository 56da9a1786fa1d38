"""How many dimensions the values of a graph have, asked while it is traced.

A network may go by that in Python, `if x.dim() == 3` or `*x.shape[2:]`, and still be one graph for all sizes of frames.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deltaconvert.ops.base import is_known


class Ranks:
    """Runs what is traced so far on tensors without values; each call goes on where the last one stopped."""

    def __init__(self, root: nn.Module, frames: Sequence[Tensor]):
        self._root, self._frames = root, frames
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._run: fx.Interpreter | None = None
        self._unknown: set[fx.Node] = set()

    def of(self, node: fx.Node) -> int | None:
        """The dimensions of a tensor; None for other values, and where values would have to be known to tell."""
        if self._run is None:
            self._run = fx.Interpreter(self._root, garbage_collect_values=False, graph=node.graph)
            self._run.args_iter = iter([self._mode.from_tensor(frame) for frame in self._frames])
        with self._mode:
            for each in list(node.graph.nodes):
                if each not in self._run.env and each not in self._unknown:
                    self._look_at(each, self._run)
        value = self._run.env.get(node)
        return value.dim() if isinstance(value, Tensor) else None

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
