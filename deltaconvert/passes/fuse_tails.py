"""An operator and the elementwise operators behind it become one node."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import fx

from deltaconvert.nodes import densify, names_of, operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.group_norm import Statistics
from deltaconvert.ops.resample import AdaptivePool2d
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.convert_edges import describe


def fuse_tails(gm: fx.GraphModule) -> fx.GraphModule:
    """Fuse chains of delta nodes in which each is read by the next one only.

    A chain ends at an activation, because a threshold may stand there, and at anything that is not elementwise.

    before:  y = conv(x);  z = add(y, skip);  r = relu(z)
    after:   r = fused[conv, add, relu](x, skip)
    """
    done: set[fx.Node] = set()
    for node in list(gm.graph.nodes):
        operator = operator_of(node)
        if (
            node in done
            or not node.meta.get("delta")
            or operator is None
            or isinstance(operator, AdaptivePool2d | Statistics)
        ):
            continue
        chain = _chain(node)
        done.update(chain)
        if len(chain) > 1:
            fuse(gm, chain)
    return gm


def _chain(head: fx.Node) -> list[fx.Node]:
    chain = [head]
    while True:
        last = chain[-1]
        operator = operator_of(last)
        assert operator is not None
        if operator.activation or len(last.users) != 1:
            return chain
        (user,) = last.users
        follower = operator_of(user)
        if not user.meta.get("delta") or follower is None or not follower.elementwise:
            return chain
        if user.args.count(last) != 1 or user.meta["shape"][2:] != last.meta["shape"][2:]:
            return chain
        chain.append(user)


def fuse(gm: fx.GraphModule, chain: Sequence[fx.Node]) -> None:
    """Replace a chain, in which each is read by the next one only, by one node. Its members may be fused themselves."""
    inputs: list[Any] = []
    stages: list[Operator] = []
    counts, slots, head_inputs = [], [], 0
    for before, node in itertools.pairwise([None, *chain]):
        operator = operator_of(node)
        assert operator is not None
        first = operator.head_inputs if isinstance(operator, Fused) else len(node.args)
        others = [arg for arg in node.args[:first] if arg is not before]
        if before is None:
            head_inputs = first
        else:
            counts.append(len(others))
            slots.append(node.args.index(before))
        inputs += [*others, *node.args[first:]]
        if isinstance(operator, Fused):
            stages += operator.stages
            counts += operator.counts
            slots += operator.slots
        else:
            stages.append(operator)
    inherit(adopt(gm, chain[-1], Fused(stages, counts, slots, head_inputs), inputs), chain)
    for node in reversed(chain[:-1]):
        gm.graph.erase_node(node)


def reads_alone(node: fx.Node, source: fx.Node) -> bool:
    """`node` is the only reader of `source`, reads it once, and there is no threshold between them nor a narrow
    mask."""
    alone = len(source.users) == 1 and node.args.count(source) == 1
    return alone and not source.meta.keys() & {"threshold", "narrow"}


def inherit(fused: fx.Node, chain: Sequence[fx.Node]) -> None:
    """What is known of the nodes of `chain` is known of the one that they became."""
    parts = [name for node in chain for name in names_of(node)]
    placed = [pair for node in chain for pair in node.meta.get("placed", ())]
    macs = sum(node.meta["macs"] for node in chain)
    fused.meta.update(path=parts[0], parts=parts, placed=placed, macs=macs)
    for user in fused.users:
        if user.target is densify:
            describe(user, fused)
