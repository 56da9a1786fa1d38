"""One pass per file: a function GraphModule -> GraphModule, its before and after drawn in its docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from deltaconvert.check import check_graph

Pass = Callable[[fx.GraphModule], fx.GraphModule]


def run_passes(gm: fx.GraphModule, passes: Sequence[Pass]) -> fx.GraphModule:
    """Apply `passes` in order and check the graph after each. Its Python code, the slow part, is generated once."""
    for rewrite in passes:
        gm = rewrite(gm)
        check_graph(gm, after=getattr(rewrite, "__name__", repr(rewrite)))
    gm.recompile()
    return gm
