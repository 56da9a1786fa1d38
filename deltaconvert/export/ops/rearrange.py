"""A map in another layout (ONNX Reshape, Transpose)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.rearrange import Rearrange


@in_onnx(Rearrange)
def rearrange(g: Scope, op: Rearrange, x: str) -> str:
    atoms = sorted((atom for dim in op.dims for atom in dim), key=lambda atom: (atom.axis, -atom.step))
    order = [atoms.index(atom) for dim in op.dims for atom in dim]
    if order != sorted(order):
        x = g.Transpose(g.Reshape(x, [atom.size for atom in atoms]), perm=order)
    return g.Reshape(x, list(op._layout.shape))
