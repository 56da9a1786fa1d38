"""Interpolation and adaptive pools (ONNX Resize, Gather, MatMul, GlobalAveragePool)."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.base import Shape
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate, SpatialMax, SpatialMean
from deltaconvert.reach import Sources


@in_onnx(SpatialMean)
def mean(g: Scope, op: SpatialMean, x: str) -> str:
    """Where it stays dense, x may have other dimensions."""
    return g.ReduceMean(x, list(op.dims) if g.axis == 1 else [1, 2], keepdims=int(op.keepdim))


@in_onnx(SpatialMax)
def largest(g: Scope, op: SpatialMax, x: str) -> str:
    return g.ReduceMax(x, list(op.dims) if g.axis == 1 else [1, 2], keepdims=int(op.keepdim))


@in_onnx(AdaptivePool2d)
def adaptive_pool(g: Scope, op: AdaptivePool2d, x: str) -> str:
    if g.axis == -1 and not g.shape:
        return x  # of pixels: each reads one, which is copied already
    if op.size == (1, 1) or g.axis == -1:  # all of a map becomes one pixel
        over = [2, 3] if g.axis == 1 else [1, 2]
        return g.ReduceMean(x, over) if op.kind == "avg" else g.ReduceMax(x, over)
    return _resampled(g, op, x) if op.kind == "avg" else _max_of_boxes(g, op, x)


@in_onnx(Interpolate)
def interpolate(g: Scope, op: Interpolate, x: str) -> str:
    return x if g.axis == -1 else _resampled(g, op, x)  # of pixels: they are copied already


def _resampled(g: Scope, op: Interpolate | AdaptivePool2d, x: str) -> str:
    rows, cols = (_matrix(op, g.shape, axis) for axis in (0, 1))
    if not all(bool(((matrix == 0) | (matrix == 1)).all()) for matrix in (rows, cols)):
        return g.MatMul(g.MatMul(rows, x), cols.t())
    tables = rows.argmax(1), cols.argmax(1)
    factors = [len(table) // size for table, size in zip(tables, g.shape[2:], strict=True)]
    if all(torch.equal(t, torch.arange(len(t)) // max(f, 1)) for t, f in zip(tables, factors, strict=True)):
        scales = torch.tensor([1.0, 1.0, *map(float, factors)])
        way = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return g.Resize(x, "", scales, mode="nearest", **way)
    return g.Gather(g.Gather(x, tables[0], axis=2), tables[1], axis=3)


def _matrix(op: Interpolate | AdaptivePool2d, shape: Shape, axis: int) -> Tensor:
    """float32 (size after, size before): what each row or column counts for, asked of the operator itself."""
    size = shape[2 + axis]
    probe = torch.eye(size).view(size, 1, size, 1).repeat(1, 1, 1, min(2, shape[3 - axis]))
    if isinstance(op, Interpolate):
        return op._along(axis)(probe)[:, 0, :, 0].t().contiguous()
    return op._pool(probe, (op.size[axis], None))[:, 0, :, 0].t().contiguous()


def _max_of_boxes(g: Scope, op: AdaptivePool2d, x: str) -> str:
    out = (*g.shape[:2], op.size[0] or g.shape[2], op.size[1] or g.shape[3])
    (reach,) = op.reaches([g.shape], out)
    assert isinstance(reach, Sources)
    for axis, table in ((2, reach.rows), (3, reach.cols)):
        x = g.ReduceMax(g.Gather(x, table, axis=axis), [axis + 1], keepdims=0)
    return x
