"""Concatenations in place: their inputs are computed in the memory of the joined map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.backends.cuda.layout import vector_of
from deltaconvert.nodes import operator_of, sparsify
from deltaconvert.ops.channels import Concat
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused, head_of
from deltaconvert.passes.adopt_operators import adopt

NOTES = "cuda"  # the key of a node's meta for notes to Backend.step


class Spaced(Concat):
    """A concatenation with zeros behind each input, up to the next multiple of `every` channels."""

    def __init__(self, every: int):
        super().__init__()
        self.every = every

    def forward(self, *xs: Tensor) -> Tensor:
        return _with_zeros(xs, self.every)


def join_concats(gm: fx.GraphModule) -> fx.GraphModule:
    """Note on a concatenation and its inputs whose memory they are part of.

    before:  a = conv(x);  b = conv(y);  z = concat(a, b)
    after:   the same, with a.meta["cuda"]["part"] = ("z", shape of z, 0), b's = ("z", shape of z, channels of a)
             and z's, which then computes nothing
    """
    for node in list(gm.graph.nodes):
        if not isinstance(operator_of(node), Concat) or not _fits(node):
            continue
        if not _in_vectors(node):
            if not all(_only_convolves(user, node) for user in node.users):
                continue
            node = _spaced(gm, node)
        every = vector_of(node.meta["dtype"])
        first, shape = 0, tuple(node.meta["shape"])
        for source in _sources(node):
            note_of(source)["part"] = (node.name, shape, first)
            first += _rounded(source.meta["shape"][1], every)
        note_of(node).update(part=(node.name, shape, 0), joins=True)
    return gm


def _fits(node: fx.Node) -> bool:
    """The inputs are steps, and part of no other map."""
    meta, sources = node.meta, _sources(node)
    if not meta.get("delta") or "threshold" in meta or len(set(sources)) < len(sources):
        return False
    return all(
        source.meta.get("delta")
        and source.target is not sparsify
        and not isinstance(operator_of(source), Concat)
        and source.meta["dtype"] == meta["dtype"]
        and "part" not in source.meta.get(NOTES, {})
        for source in sources
    )


def _in_vectors(node: fx.Node) -> bool:
    """Each input begins at a multiple of a vector of 16 bytes."""
    return all(source.meta["shape"][1] % vector_of(node.meta["dtype"]) == 0 for source in _sources(node)[:-1])


def _spaced(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Maps of 28 channels end within a vector. They can still lie in one memory, with zeros between them, if only
    convolutions read it.

    before:  z = concat(a, b);  y = conv(z)
    after:   z = spaced(a, b);  y = conv(z), with weights for the zeros, which are 0
    """
    every, counts = vector_of(node.meta["dtype"]), [source.meta["shape"][1] for source in _sources(node)]
    spaced = adopt(gm, node, Spaced(every), list(node.args))
    n, _, height, width = spaced.meta["shape"]
    spaced.meta["shape"] = (n, sum(_rounded(count, every) for count in counts), height, width)
    for user in list(spaced.users):
        adopt(gm, user, _reading(operator_of(user), counts, every), list(user.args))
    return spaced


def _with_zeros(parts: Sequence[Tensor], every: int) -> Tensor:
    """Side by side, each up to the next multiple of `every` channels."""
    return torch.cat([F.pad(part, (0, 0, 0, 0, 0, -part.shape[1] % every)) for part in parts], 1)


def _rounded(count: int, every: int) -> int:
    return count + -count % every


def _only_convolves(user: fx.Node, node: fx.Node) -> bool:
    """The node reads the map only as the input of a convolution of one group."""
    operator = operator_of(user) if user.meta.get("delta") else None
    head = None if operator is None else head_of(operator)
    return type(head) is Conv2d and head.groups == 1 and user.args[0] is node and node not in user.args[1:]


def _reading(operator: object, counts: Sequence[int], every: int) -> Conv2d | Fused:
    """The same operator for maps with zeros after every so many channels."""
    if isinstance(operator, Fused):
        head = _reading(operator.head, counts, every)
        stages = [head, *list(operator.stages)[1:]]
        return Fused(stages, operator.counts, operator.slots, operator.head_inputs)  # type: ignore[arg-type]
    assert isinstance(operator, Conv2d)
    weight = _with_zeros(operator.weight.split(list(counts), 1), every)
    return Conv2d(weight, operator.bias, operator.stride, operator.padding, operator.dilation, 1)


def _sources(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.args if isinstance(source, fx.Node)]


def note_of(node: fx.Node) -> dict[str, object]:
    notes: dict[str, object] = node.meta.setdefault(NOTES, {})
    return notes
