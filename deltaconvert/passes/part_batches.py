"""Maps joined along the batch: one call of a backbone on several of them becomes a call for each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from deltaconvert.nodes import names_of, operator_of, path_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.channels import Concat
from deltaconvert.passes.decide import Seen, seen, why_dense
from deltaconvert.thresholds import matches


def part_batches(streams: int, keep_dense: Sequence[str] = ()) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that calls operators for each of the maps that a network joins along the batch, as optical flow and
    Siamese networks do with two frames: an image of a delta node's map is a stream. What takes single maps of them
    again reads these; before what stays dense they are joined.

    before:  b = cat([x, y], 0);  z = conv(b);  p = z[0:1];  q = z[1:2];  w = unknown(z)
    after:   p = conv(x);  q = conv(y);  w = unknown(cat([p, q], 0))
    """

    def part_batches(gm: fx.GraphModule) -> fx.GraphModule:
        walk = _Walk(gm, streams, keep_dense)
        for node in list(gm.graph.nodes):
            walk.visit(node)
        gm.graph.eliminate_dead_code()
        return gm

    return part_batches


class _Walk:
    """One walk over the graph. parts: the maps that a value is the join of, where it is one."""

    def __init__(self, gm: fx.GraphModule, streams: int, keep_dense: Sequence[str]):
        self.gm, self.streams, self.keep_dense = gm, streams, keep_dense
        self.parts: dict[fx.Node, list[fx.Node]] = {}
        self.whole: dict[fx.Node, fx.Node] = {}  # of those, the value itself, where something reads it

    def visit(self, node: fx.Node) -> None:
        if self._joins(node) or self._calls(node) or self._takes(node):
            return
        for source in node.all_input_nodes:
            if source in self.parts:
                node.replace_input_with(source, self._joined(source))

    def _joins(self, node: fx.Node) -> bool:
        joins = operator_of(node)
        if not isinstance(joins, Concat) or joins.dim not in (0, -4) or self._is_kept(node):
            return False
        sources = cast(Sequence[fx.Node], node.args)  # the same map may be among them twice
        parts = [part for source in sources for part in self.parts.get(source, [source])]
        if not all(self._is_map(part) for part in parts):
            return False
        self.parts[node], self.whole[node] = parts, node
        return True

    def _calls(self, node: fx.Node) -> bool:
        """An operator on joined maps, which can be a delta node on each of them."""
        called = operator_of(node)
        sources = [self.parts.get(source, []) for source in node.args] if called is not None else []
        calls = list(zip(*sources, strict=False))
        shape = node.meta.get("shape")
        if called is None or not calls or shape is None or self._is_kept(node):
            return False
        if any(len(parts) != len(calls) for parts in sources) or shape[0] != len(calls) * self.streams:
            return False
        output = seen(node)._replace(shape=(self.streams, *shape[1:]), delta=True)
        if any(why_dense(called, list(map(self._seen, call)), output, self.streams) for call in calls):
            return False
        self.parts[node] = [
            self._call(node, called, call, output, number) for number, call in enumerate(calls, 1)
        ]
        return True

    def _call(
        self, node: fx.Node, called: Operator, sources: Sequence[fx.Node], output: Seen, number: int
    ) -> fx.Node:
        """The call for one of the maps; the second is called as the second call of a module is."""
        name = node.name if number == 1 else f"{node.name}_{number}"
        target = f"operators.{name}_of_{number}"
        self.gm.add_submodule(target, type(called)(**called.settings()))
        with self.gm.graph.inserting_before(node):
            call = self.gm.graph.call_module(target, tuple(sources))
        path = path_of(node) if number == 1 else f"{path_of(node)}#{number}"
        call.meta = {**node.meta, "shape": output.shape, "path": path, "parts": names_of(node)}
        return call

    def _takes(self, node: fx.Node) -> bool:
        """x[0:2], which is one of the maps, or some of them."""
        source = node.args[0] if node.args else None
        if node.target is not operator.getitem or source not in self.parts:
            return False
        bounds = _of_batch(node.args[1])
        parts = self.parts[source]
        taken = range(len(parts) * self.streams)[bounds] if bounds is not None else range(0)
        if not taken or taken.step != 1 or taken.start % self.streams or len(taken) % self.streams:
            return False
        found = parts[taken.start // self.streams : taken.stop // self.streams]
        if len(found) == 1:
            node.replace_all_uses_with(found[0])
            return True
        self.parts[node] = found
        return True

    def _joined(self, node: fx.Node) -> fx.Node:
        """The value of a joined map, for what stays dense."""
        if node not in self.whole:
            parts = self.parts[node]
            with self.gm.graph.inserting_after(node):
                whole = self.gm.graph.call_function(torch.cat, (parts, 0))
            reason = f"it joins {len(parts)} maps along the batch for what stays dense"
            whole.meta = {**node.meta, "path": f"cat({path_of(node)})", "why_dense": reason, "macs": 0}
            self.whole[node] = whole
        return self.whole[node]

    def _is_map(self, node: fx.Node) -> bool:
        shape = node.meta.get("shape") or ()
        return len(shape) == 4 and shape[0] == self.streams

    def _seen(self, node: fx.Node) -> Seen:
        called = operator_of(node)
        reads = list(map(seen, node.args)) if called is not None else []
        is_delta = called is not None and why_dense(called, reads, seen(node), self.streams) is None
        return seen(node)._replace(delta=is_delta)

    def _is_kept(self, node: fx.Node) -> bool:
        return any(matches(pattern, names_of(node)) for pattern in self.keep_dense)


def _of_batch(index: Any) -> slice | None:
    """The slice of the batch that an index takes; None where it takes less of the rest than all."""
    first, *others = index if isinstance(index, tuple) else (index,)
    whole = all(part in (slice(None), Ellipsis) for part in others)
    known = isinstance(first, slice) and not any(
        isinstance(bound, fx.Node) for bound in (first.start, first.stop, first.step)
    )
    return first if whole and known else None
