"""Channels into pixels and back (ONNX DepthToSpace; SpaceToDepth orders channels in another way than torch)."""

from __future__ import annotations

from deltaconvert.export.graph import Scope
from deltaconvert.export.ops import in_onnx
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle


@in_onnx(PixelShuffle)
def shuffle(g: Scope, op: PixelShuffle, x: str) -> str:
    return g.DepthToSpace(x, blocksize=op.factor, mode="CRD")


@in_onnx(PixelUnshuffle)
def unshuffle(g: Scope, op: PixelUnshuffle, x: str) -> str:
    """(N, C, h, f, w, f) -> (N, C, f, f, h, w), the sizes read from the value itself."""
    f = op.factor
    batch, channels, height, width = (g.Slice(g.Shape(x), [place], [place + 1]) for place in range(4))
    height, width = g.Div(height, [f]), g.Div(width, [f])
    split = g.Concat(batch, channels, height, g.constant([f]), width, g.constant([f]), axis=0)
    apart = g.Transpose(g.Reshape(x, split), perm=[0, 1, 3, 5, 2, 4])
    return g.Reshape(apart, g.Concat(batch, g.Mul(channels, [f * f]), height, width, axis=0))
