"""Windows by their taps."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.export.graph import Body
from deltaconvert.export.ops import conv as conv_spelling
from deltaconvert.export.sparse.kind import Call, Headed
from deltaconvert.export.sparse.places import gathered
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pool import MaxPool2d
from deltaconvert.reach import Window

# Convolutions of fewer channels go by tiles: nine taps of 64 channels take longer to gather than tiles of 8 compute in
# excess (onnxruntime 1.32, 2 cores: 21 against 35 GMAC/s; at 128 channels 32 against 37, and no excess).
TAPS_FROM = 128


class Taps(Headed):
    """A convolution of many channels as a product of rows, each the taps of one pixel; the maximum of taps."""

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach, head = call.reaches[0], call.head
        if not isinstance(reach, Window) or reach.transposed:
            return False
        if isinstance(head, MaxPool2d):
            return reach.dilation == (1, 1)
        return (
            isinstance(head, Conv2d)
            and head.groups == 1
            and (call.shapes[0][1] >= TAPS_FROM or reach.kernel == (1, 1))
        )

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, reach, shape = self.call.head, self.call.reaches[0], self.call.shapes[0]
        assert isinstance(reach, Window)
        stream, *places = g.Split(where, axis=1, num_outputs=3, outputs=3)
        lines = [
            g.Add(g.Mul(place, reach.stride[axis]), self._reads(axis)) for axis, place in enumerate(places)
        ]
        g.axis = -1
        taps, channels = reach.kernel[0] * reach.kernel[1], shape[1]
        if isinstance(head, MaxPool2d):  # what lies outside is another tap once more: no larger maximum
            rows = gathered(g, value, shape, stream, lines, None)
            return g.ReduceMax(g.Reshape(rows, [-1, taps, channels]), [1], keepdims=0), where
        rows = g.Reshape(gathered(g, value, shape, stream, lines, 0.0), [-1, taps * channels])
        weight = g.Transpose(g.weight(head.weight), perm=[2, 3, 1, 0])
        product = g.MatMul(rows, g.Reshape(weight, [taps * channels, head.weight.shape[0]]))
        return conv_spelling.with_bias(g, product, head.bias), where

    def _reads(self, axis: int) -> Tensor:
        """int64 (1, taps): the lines that output line 0 reads."""
        reach = self.call.reaches[0]
        assert isinstance(reach, Window)
        return (torch.arange(reach.kernel[axis]) * reach.dilation[axis] - reach.padding[axis]).view(1, -1)
