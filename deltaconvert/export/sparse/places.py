"""Pixels gathered from maps N H W C, and compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltaconvert.backends.reference import Amount
from deltaconvert.export import masks
from deltaconvert.export.graph import Scope
from deltaconvert.ops.base import Shape
from deltaconvert.reach import Everything, Pixel, Reach, Sources


def is_pointlike(reach: Reach, shape: Shape) -> bool:
    """The input can be taken pixel by pixel: it is read there, or it is a gate, or stretched."""
    if isinstance(reach, Sources):
        return reach.single and reach.orphans is None and 1 in shape[2:]
    return isinstance(reach, Pixel) or (isinstance(reach, Everything) and shape[2:] == (1, 1))


def taken(g: Scope, value: str, reach: Reach, shape: Shape, places: str) -> str:
    """The pixels of an input at `places`, (..., 3) -> (..., C)."""
    if isinstance(reach, Pixel):
        return g.GatherND(value, places)
    if shape[0] == 1 and shape[2:] == (1, 1):
        return g.Reshape(value, [shape[1]])
    whole = torch.tensor([1, int(shape[2] > 1), int(shape[3] > 1)])
    return g.GatherND(value, g.Mul(places, whole))


def gathered(
    g: Scope, value: str, shape: Shape, stream: str, lines: Sequence[str], fill: float | None
) -> str:
    """Boxes of pixels, (n, h, w, C): stream (n, 1), lines of rows (n, h) and columns (n, w), which may lie outside.

    Outside is `fill`; None repeats the map's edge.
    """
    _, channels, height, width = shape
    rows, cols = (g.Min(g.Max(line, 0), size - 1) for line, size in zip(lines, (height, width), strict=True))
    first = g.Unsqueeze(g.Add(g.Mul(stream, height * width), g.Mul(rows, width)), [2])
    flat = g.Add(first, g.Unsqueeze(cols, [1]))
    pixels = g.Reshape(value, [-1, channels])
    if fill is None:
        return g.Gather(pixels, flat, axis=0)
    within = g.And(g.Unsqueeze(g.Equal(rows, lines[0]), [2]), g.Unsqueeze(g.Equal(cols, lines[1]), [1]))
    then, otherwise = g.branch(), g.branch()
    then.result(then.Where(then.Unsqueeze(within, [3]), then.Gather(pixels, flat, axis=0), fill))
    otherwise.result(otherwise.Gather(pixels, flat, axis=0))
    return g.choose(any_of(g, g.Not(within)), then, otherwise)


def any_of(g: Scope, mask: str) -> str:
    return g.Greater(g.Size(g.NonZero(mask)), 0)


def moves(g: Scope, new: str, old: str, threshold: Amount, axis: int) -> str:
    """bool: some channel moved by more than the threshold."""
    moved = g.Not(masks.within(g, new, old, threshold, axis))
    return g.Greater(g.ReduceMax(g.Cast(moved, to=1), [axis]), 0.5)
