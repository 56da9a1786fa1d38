"""Concatenations in place: their inputs are computed where the joined map lies."""

from __future__ import annotations

from torch import fx

from deltaconvert.check import operator_of, sparsify
from deltaconvert.ops.channels import Concat

NOTES = "cuda"  # of a node, for Backend.step


def join_concats(gm: fx.GraphModule) -> fx.GraphModule:
    """Tell the inputs of a concatenation, and itself, whose memory they are part of.

    before:  a = conv(x);  b = conv(y);  z = concat(a, b)
    after:   the same, with a.meta["cuda"]["part"] = ("z", shape of z, 0), b's = ("z", shape of z, channels of a)
             and z's, which then computes nothing
    """
    for node in gm.graph.nodes:
        if isinstance(operator_of(node), Concat) and _fits(node):
            first = 0
            for source in _sources(node):
                note_of(source)["part"] = (node.name, tuple(node.meta["shape"]), first)
                first += source.meta["shape"][1]
            note_of(node).update(part=(node.name, tuple(node.meta["shape"]), 0), joins=True)
    return gm


def _fits(node: fx.Node) -> bool:
    """Inputs are steps that are part of no other map, and begin where a vector of 16 bytes does."""
    meta, sources = node.meta, _sources(node)
    if not meta.get("delta") or "threshold" in meta or len(set(sources)) < len(sources):
        return False
    vector = max(1, 16 // meta["dtype"].itemsize)
    return all(source.meta["shape"][1] % vector == 0 for source in sources[:-1]) and all(
        source.meta.get("delta")
        and source.target is not sparsify
        and not isinstance(operator_of(source), Concat)
        and source.meta["dtype"] == meta["dtype"]
        and "part" not in source.meta.get(NOTES, {})
        for source in sources
    )


def _sources(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.args if isinstance(source, fx.Node)]


def note_of(node: fx.Node) -> dict[str, object]:
    notes: dict[str, object] = node.meta.setdefault(NOTES, {})
    return notes
