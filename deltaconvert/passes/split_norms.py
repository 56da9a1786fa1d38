"""Group and instance norms become statistics and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx

from deltaconvert.nodes import operator_of, path_of
from deltaconvert.ops.group_norm import GroupNorm, Normalise, Statistics
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.propagate import propagate


def split_norms(gm: fx.GraphModule) -> fx.GraphModule:
    """Make the statistics a node of their own: a small map that changes as a whole or not at all.

    before:  y = group_norm(x)
    after:   s = statistics(x);  y = normalise(x, s)
    """
    for node in list(gm.graph.nodes):
        norm = operator_of(node)
        if not isinstance(norm, GroupNorm):
            continue
        with gm.graph.inserting_before(node):
            # A copy of the node for adopt to replace.
            call = gm.graph.call_module(str(node.target), node.args)
        call.meta = {**node.meta, "path": f"{path_of(node)}.statistics"}
        statistics = adopt(gm, call, Statistics(norm.groups, norm.eps), list(node.args))
        gm.delete_submodule(str(node.target))
        adopt(gm, node, Normalise(norm.weight, norm.bias), [*node.args, statistics])
    return gm


def split_late_norms(frames: Sequence[Tensor]) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that does so with norms whose groups were sizes, or whose weights were computed, until constants were
    folded. What their statistics come to on `frames` is seen by running the graph once more.

    before:  y = group_norm(x)    [from F.group_norm(x, x.shape[1] // 8)]
    after:   s = statistics(x);  y = normalise(x, s)
    """

    def split(gm: fx.GraphModule) -> fx.GraphModule:
        late = any(isinstance(operator_of(node), GroupNorm) for node in gm.graph.nodes)
        return propagate(frames)(split_norms(gm)) if late else gm

    return split
