"""Windows by tiles."""

from __future__ import annotations

import torch

from deltaconvert.export.graph import Body, Scope
from deltaconvert.export.ops import conv as conv_spelling
from deltaconvert.export.ops import conv_transpose as transposed_spelling
from deltaconvert.export.ops import pool as pool_spelling
from deltaconvert.export.ops import spell
from deltaconvert.export.sparse.kind import Call, Headed
from deltaconvert.export.sparse.places import gathered
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.pool import AvgPool2d
from deltaconvert.reach import Window

TILE = 8


class Tiles(Headed):
    """Tiles of the output from windows of the input, as a batch of small maps that the operator itself computes.

    Tiles never reach over the map's edge: the last of a row starts further in and computes some pixels once more.
    """

    def __init__(self, call: Call):
        super().__init__(call)
        tile = TILE if max(call.out[2:]) >= 64 else TILE // 2
        step = self._step(call)
        tile = -(-tile // step) * step
        self.tile = min(tile, call.out[2]), min(tile, call.out[3])

    @staticmethod
    def _step(call: Call) -> int:
        """Tiles start at multiples of this."""
        reach = call.reaches[0]
        if isinstance(call.head, PixelShuffle):
            return call.head.factor
        return max(reach.stride) if isinstance(reach, Window) and reach.transposed else 1

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach, head = call.reaches[0], call.head
        if isinstance(head, PixelShuffle):
            return True
        if not isinstance(reach, Window):
            return False
        if isinstance(head, ConvTranspose2d):
            step = max(reach.stride)
            same = reach.stride[0] == reach.stride[1]
            return same and all(side % step == 0 for side in call.out[2:])
        whole = isinstance(head, AvgPool2d) and head.position_free
        return isinstance(head, Conv2d | PixelUnshuffle) or whole

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, shape = self.call.head, self.call.shapes[0]
        assert self.tile is not None
        stream, *corners = g.Split(where, axis=1, num_outputs=3, outputs=3)
        lines, skips = [], []
        for axis, corner in enumerate(corners):
            (times, over), first, length, skip = self._window(axis)
            start = g.Div(g.Mul(corner, times), over)
            lines.append(g.Add(start, torch.arange(length).view(1, -1) + first))
            skips.append(skip)
        windows = gathered(g, value, shape, stream, lines, 0.0)
        g.axis = 1
        new = _of_windows(g, head, g.Transpose(windows, perm=[0, 3, 1, 2]))
        if isinstance(head, ConvTranspose2d):
            stops = [skip + side for skip, side in zip(skips, self.tile, strict=True)]
            new = g.Slice(new, skips, stops, [2, 3])
        rows, cols = torch.meshgrid(*(torch.arange(side) for side in self.tile), indexing="ij")
        inside = torch.stack([torch.zeros_like(rows), rows, cols], -1).unsqueeze(0)
        places = g.Add(g.Unsqueeze(where, [1, 2]), inside)
        return g.Transpose(new, perm=[0, 2, 3, 1]), places

    def _window(self, axis: int) -> tuple[tuple[int, int], int, int, int]:
        """(inputs for each output as a fraction, first input of a tile at 0, how many, results to skip)."""
        assert self.tile is not None
        tile, reach, head = self.tile[axis], self.call.reaches[0], self.call.head
        if isinstance(head, PixelShuffle):
            return (1, head.factor), 0, tile // head.factor, 0
        assert isinstance(reach, Window)
        stride, padding = reach.stride[axis], reach.padding[axis]
        span = reach.dilation[axis] * (reach.kernel[axis] - 1)
        if not reach.transposed:
            return (stride, 1), -padding, (tile - 1) * stride + span + 1, 0
        first = -((span - padding) // stride)
        skip = padding - first * stride
        if skip < 0:
            first, skip = first - 1, skip + stride
        length = max((tile - 1 + padding) // stride - first + 1, -(-(skip + tile - 1 - span) // stride) + 1)
        return (1, stride), first, length, skip


def _of_windows(g: Scope, head: Operator, windows: str) -> str:
    """The head on gathered windows N C h w, without a padding of its own."""
    if isinstance(head, Conv2d):
        return conv_spelling.convolution(g, head, windows, (0, 0))
    if isinstance(head, ConvTranspose2d):
        return transposed_spelling.convolution(g, head, windows, (0, 0), (0, 0))
    if isinstance(head, AvgPool2d):
        return pool_spelling.average_of_windows(g, head, windows, (0, 0), (0, 0))
    return spell(g, head, windows)
