"""Maps that only the next step reads need no memory of their own."""

from __future__ import annotations

import itertools

from torch import fx

from deltaconvert.backends.cuda.concats import note_of
from deltaconvert.nodes import operator_of, sparsify


def note_passing(gm: fx.GraphModule) -> fx.GraphModule:
    """Note the nodes whose map only the next step reads. If that step computes the same pixels, which shows when lists
    are made, the map is passed on in memory that all such steps share. The depthwise convolutions of MobileNetV2 would
    hold a third of its state.

    before:  y = depthwise(x);  z = conv1x1(y)
    after:   the same, with y.meta["cuda"]["passes"] = True
    """
    deltas = [node for node in gm.graph.nodes if node.meta.get("delta")]
    for node, behind in itertools.pairwise(deltas):
        notes = note_of(node)
        computed = node.target is not sparsify and operator_of(node) is not None
        if computed and list(node.users) == [behind] and behind.target is not sparsify:
            notes["passes"] = "threshold" not in node.meta and "part" not in notes
    return gm
