"""A map in another layout, and back (ONNX Reshape, Transpose)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.rearrange import MapOf, Rearrange


@in_onnx(Rearrange)
def rearrange(g: Scope, op: Rearrange, x: str) -> str:
    atoms = op.layout.atoms
    order = [atoms.index(atom) for dim in op.dims for atom in dim]
    if order != sorted(order):
        x = g.Transpose(g.Reshape(x, [atom.size for atom in atoms]), perm=order)
    return g.Reshape(x, list(op.layout.shape))


@in_onnx(MapOf)
def map_of(g: Scope, op: MapOf, x: str) -> str:
    given = [atom for dim in op.dims for atom in dim]
    order = [given.index(atom) for atom in op.layout.atoms]
    if order != sorted(order):
        x = g.Transpose(g.Reshape(x, [atom.size for atom in given]), perm=order)
    return g.Reshape(x, list(op.size))
