"""Padding, crops, rolled and mirrored maps (ONNX Pad, Slice, Gather)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.export.ops.channels import sliced
from deltaconvert.ops.pad import Pad
from deltaconvert.ops.places import Crop, Flip, Roll

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@in_onnx(Pad)
def pad(g: Scope, op: Pad, x: str) -> str:
    if g.axis == -1:  # of channels alone
        beside = op.beside(1)
        return g.Pad(x, list(beside), float(op.fill), [-1]) if any(beside) else x
    before, after = zip((0, 0), *(op.beside(dim) for dim in (1, 2, 3)), strict=True)
    fill = [float(op.fill)] if op.mode == "constant" else []
    # Of all axes: onnxruntime (1.32) moves a transpose through a Pad of some, and then takes their pads for all.
    return g.Pad(x, [*before, *after], *fill, mode=_MODES[op.mode])


@in_onnx(Crop)
def crop(g: Scope, op: Crop, x: str) -> str:
    if g.axis == -1:
        return sliced(g, x, op.channels, -1)
    for axis, bounds in ((1, op.channels), (2, op.rows), (3, op.cols)):
        if bounds != (None, None, None):
            x = sliced(g, x, bounds, axis)
    return x


@in_onnx(Roll)
def roll(g: Scope, op: Roll, x: str) -> str:
    if g.axis == -1:  # pixels are in place already
        return x
    for shift, dim in zip(op.shifts, op.dims, strict=True):
        axis = dim % 4
        size = g.shape[axis]
        split = -shift % size
        if split:
            x = g.Concat(g.Slice(x, [split], [size], [axis]), g.Slice(x, [0], [split], [axis]), axis=axis)
    return x


@in_onnx(Flip)
def flip(g: Scope, op: Flip, x: str) -> str:
    for dim in op.dims:
        axis = dim % 4
        if g.axis == -1 and axis != 1:
            continue
        x = sliced(g, x, (None, None, -1), -1 if g.axis == -1 else axis)
    return x
