"""Bodies of delta operators in standard ONNX: gather what candidates read, compute, scatter into the stored map.

Every body is (maps, list of candidates, stored map) -> stored map, N H W C. A list is of pixels, int64 (n, 3), or of
the corners of tiles; it is made once for all operators that share a mask (network.py). The last node of a body is a
ScatterND into the stored map, which a runtime does in place where both are one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.reference import Amount
from deltaconvert.export import masks
from deltaconvert.export.graph import Body, Scope
from deltaconvert.export.ops import conv as conv_spelling
from deltaconvert.export.ops import conv_transpose as transposed_spelling
from deltaconvert.export.ops import pool as pool_spelling
from deltaconvert.export.ops import spell, spell_tail
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused, head_of, stages_of
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.pool import AvgPool2d, MaxPool2d
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

# Convolutions of fewer channels go by tiles: nine taps of 64 channels take longer to gather than tiles of 8 compute in
# excess (onnxruntime 1.32, 2 cores: 21 against 35 GMAC/s; at 128 channels 32 against 37, and no excess).
TAPS_FROM = 128
TILE = 8


@dataclass
class Call:
    """One delta node: its operator, and for each input reach and shape N C H W."""

    operator: Operator
    reaches: Sequence[Reach]
    shapes: Sequence[Shape]
    out: Shape
    threshold: Amount | None

    @property
    def head_inputs(self) -> int:
        operator = self.operator
        return operator.head_inputs if isinstance(operator, Fused) else len(self.shapes)

    @property
    def head(self) -> Any:
        return head_of(self.operator)


class Kind:
    """A way to compute. `tile`: None where it takes a list of pixels, else the tiles that it takes a list of."""

    tile: tuple[int, int] | None = None
    listed = True  # whether it takes a list at all

    def __init__(self, call: Call):
        self.call = call

    @classmethod
    def fits(cls, call: Call) -> bool:
        raise NotImplementedError

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        """[stored map], and the mask of what changed where a threshold stands."""
        raise NotImplementedError


class Masked(Kind):
    """The whole map, of which the candidates are kept; nothing where there are none."""

    listed = False

    @classmethod
    def fits(cls, call: Call) -> bool:
        return True

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        call = self.call
        then, otherwise = g.branch(), g.branch()
        new = self._new(then, values)
        changed = then.Transpose(then.Greater(candidates, 0.5), perm=[0, 2, 3, 1])
        if call.threshold is not None:
            moved = then.Or(moves(then, new, stored, call.threshold, -1), then.Reshape(every, [-1, 1, 1, 1]))
            changed = then.And(changed, moved)
        n, _, height, width = call.out
        then.result(then.Where(changed, new, stored))
        otherwise.result(otherwise.Identity(stored))
        if call.threshold is None:
            return [g.choose(any_of(g, candidates), then, otherwise)]
        then.result(then.Reshape(then.Cast(changed, to=1), [n, 1, height, width]))
        otherwise.result(otherwise.Identity(candidates))
        return list(g.choose(any_of(g, candidates), then, otherwise, 2))

    def _new(self, g: Scope, values: Sequence[str]) -> str:
        g.shape, g.axis = self.call.shapes[0], 1
        maps = [g.Transpose(value, perm=[0, 3, 1, 2]) for value in values]
        return g.Transpose(spell(g, self.call.operator, *maps), perm=[0, 2, 3, 1])


class OnePixel(Masked):
    """What reads a whole map for one pixel: global pools, the layers behind flatten, statistics."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        return isinstance(call.operator, AdaptivePool2d) and call.out[2:] == (1, 1)

    def _new(self, g: Scope, values: Sequence[str]) -> str:
        g.axis = -1
        new = spell(g, self.call.operator, *values)
        g.axis = 1
        return new


class Rows(Kind):
    """A list of pixels, each computed from the same pixel of the inputs."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        pointlike = all(
            is_pointlike(reach, shape) for reach, shape in zip(call.reaches, call.shapes, strict=True)
        )
        return (
            pointlike
            and call.operator.position_free
            and isinstance(call.reaches[0], Pixel | Sources | Everything)
        )

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        g.axis = -1
        rows = [
            taken(g, value, reach, shape, where)
            for value, reach, shape in zip(values, self.call.reaches, self.call.shapes, strict=True)
        ]
        return commit(g, self.call, spell(g, self.call.operator, *rows), where, None, stored, every)


class _Headed(Kind):
    """A head that gathers for itself, and a tail of functions of pixels."""

    @classmethod
    def fits(cls, call: Call) -> bool:
        rest = zip(call.reaches[1:], call.shapes[1:], strict=True)
        tail = stages_of(call.operator)[1:]
        free = all(stage.position_free for stage in tail) and all(is_pointlike(*each) for each in rest)
        return free and call.head_inputs == 1 and cls._fits_head(call)

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        raise NotImplementedError

    def body(
        self, g: Body, values: Sequence[str], candidates: str, where: str, stored: str, every: str
    ) -> list[str]:
        call = self.call
        new, places = self._head(g, values[0], where)
        g.axis = -1
        others = [
            taken(g, value, reach, shape, places)
            for value, reach, shape in zip(values[1:], call.reaches[1:], call.shapes[1:], strict=True)
        ]
        new = spell_tail(g, call.operator, new, others)
        return commit(g, call, new, places, candidates if self.tile else None, stored, every)

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        """(computed pixels, their places)."""
        raise NotImplementedError


class Taps(_Headed):
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
            g.Add(g.Mul(place, reach.stride[axis]), window_lines(reach, axis, reach.kernel[axis]))
            for axis, place in enumerate(places)
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


class Tiles(_Headed):
    """Tiles of the output from windows of the input, as a batch of small maps that the operator itself computes.

    Tiles never reach over the map's edge: the last of a row starts further in and computes some pixels once more.
    """

    def __init__(self, call: Call):
        super().__init__(call)
        tile = max(2, TILE) if max(call.out[2:]) >= 64 else TILE // 2
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


class Copies(_Headed):
    """Pixels copied from other places: nearest interpolation, padding, crops."""

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach = call.reaches[0]
        return call.head.copies and isinstance(reach, Sources) and reach.single

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, reach, shape = self.call.head, self.call.reaches[0], self.call.shapes[0]
        assert isinstance(reach, Sources)
        stream, lines = _table_lines(g, reach, where)
        rows = g.Reshape(gathered(g, value, shape, stream, lines, float(head.fill)), [-1, shape[1]])
        g.axis = -1
        return spell(g, head, rows), where


class Weighted(_Headed):
    """Pixels that are weighted sums of some others: bilinear and bicubic interpolation."""

    @classmethod
    def _fits_head(cls, call: Call) -> bool:
        reach = call.reaches[0]
        return isinstance(call.head, Interpolate) and isinstance(reach, Sources) and reach.orphans is None

    def _head(self, g: Body, value: str, where: str) -> tuple[str, str]:
        head, reach, shape = self.call.head, self.call.reaches[0], self.call.shapes[0]
        assert isinstance(reach, Sources)
        stream, lines = _table_lines(g, reach, where)
        _, rows, cols = g.Split(where, axis=1, num_outputs=3, outputs=3)
        weights = head.weights(reach, shape, torch.float32)
        down, across = (
            g.Gather(weight.contiguous(), g.Squeeze(places, [1]), axis=0)
            for weight, places in zip(weights, (rows, cols), strict=True)
        )
        pixels = gathered(g, value, shape, stream, lines, None)
        both = g.Mul(g.Unsqueeze(down, [2, 3]), g.Unsqueeze(across, [1, 3]))
        return g.ReduceSum(g.Mul(pixels, both), [1, 2], keepdims=0), where


KINDS: tuple[type[Kind], ...] = (OnePixel, Rows, Taps, Tiles, Copies, Weighted, Masked)


def kind_of(call: Call) -> Kind:
    """The first that fits."""
    return next(kind for kind in KINDS if kind.fits(call))(call)


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


def commit(
    g: Scope, call: Call, new: str, places: str, candidates: str | None, stored: str, every: str
) -> list[str]:
    """Store computed pixels (..., C) at places (..., 3); with a threshold those that moved, and what they are."""
    if call.threshold is None:
        return [g.ScatterND(stored, places, new)]
    n, channels, height, width = call.out
    if candidates is not None:
        new, places = g.Reshape(new, [-1, channels]), g.Reshape(places, [-1, 3])
    moved = g.Squeeze(moves(g, new, g.GatherND(stored, places), call.threshold, -1), [-1])
    moved = g.Or(moved, g.GatherND(every, g.Slice(places, [0], [1], [1])))
    if candidates is not None:
        whole = g.Reshape(candidates, [n, height, width])
        moved = g.And(moved, g.Greater(g.GatherND(whole, places), 0.5))
    places, new = g.Compress(places, moved, axis=0), g.Compress(new, moved, axis=0)
    ones = g.Expand(1.0, g.Slice(g.Shape(places), [0], [1]))
    mask = g.ScatterND(torch.zeros(n, height, width), places, ones)
    return [g.ScatterND(stored, places, new), g.Reshape(mask, [n, 1, height, width])]


def window_lines(reach: Window, axis: int, count: int) -> Tensor:
    return (torch.arange(count) * reach.dilation[axis] - reach.padding[axis]).view(1, -1)


def _table_lines(g: Scope, reach: Sources, where: str) -> tuple[str, list[str]]:
    stream, *places = g.Split(where, axis=1, num_outputs=3, outputs=3)
    tables = (reach.rows, reach.cols)
    return stream, [
        g.Gather(table, g.Squeeze(place, [1]), axis=0) for table, place in zip(tables, places, strict=True)
    ]


def _of_windows(g: Scope, head: Any, windows: str) -> str:
    """The head on gathered windows N C h w, without a padding of its own."""
    if isinstance(head, Conv2d):
        return conv_spelling.convolution(g, head, windows, (0, 0))
    if isinstance(head, ConvTranspose2d):
        return transposed_spelling.convolution(g, head, windows, (0, 0), (0, 0))
    if isinstance(head, AvgPool2d):
        return pool_spelling.average_of_windows(g, head, windows, (0, 0))
    return spell(g, head, windows)
