"""Narrow changes: some nodes' changes are seen only in the middle of the next window.

A change reaches all output pixels whose window holds it, so that a mask grows by a pixel with each 3x3 convolution.
With thresholds most of that growth matters little. Where a rule says `narrow`, a change reaches only one output pixel,
as in submanifold sparse convolutions (Graham and van der Maaten, 2017, arXiv 1706.01307). The pixels around it keep
their values until something changes in their own middle.

before:  y = conv3x3(x)    a changed pixel of x makes nine of y candidates
after:   the same, with x.meta["narrow"]: one of y. Each candidate still reads all of its window.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx

from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.reach import Reach, narrowed


def reaches_of(node: fx.Node) -> list[Reach]:
    """For each input of a delta node: which pixels an output pixel reads, and which make it a candidate."""
    operator = operator_of(node)
    assert operator is not None
    inputs: Sequence[Any] = node.args
    shapes = [source.meta["shape"] for source in inputs]
    return narrow_reaches(operator, shapes, node.meta["shape"], narrow_inputs(node))


def narrow_inputs(node: fx.Node) -> list[int]:
    """The places of the inputs whose changes are narrow."""
    inputs: Sequence[Any] = node.args
    return [place for place, source in enumerate(inputs) if source.meta.get("narrow")]


def narrow_reaches(
    operator: Operator, shapes: Sequence[Shape], out_shape: Shape, narrow: Collection[int]
) -> list[Reach]:
    found = operator.reaches(shapes, out_shape)
    if not operator.narrows:
        return found
    return [narrowed(reach) if place in narrow else reach for place, reach in enumerate(found)]
