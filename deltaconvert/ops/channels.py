"""Joining maps along the channels and taking channels out of one (ONNX Concat, Slice, Split)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from deltaconvert.layout import Layout
from deltaconvert.ops.around import padded_beside
from deltaconvert.ops.base import Operator, Shape, StaysDense, constant, spelled
from deltaconvert.ops.places import crop, flip


class Concat(Operator):
    """N C1 H W, N C2 H W, ... -> N (C1 + C2 + ...) H W; `dim` is 1, -3, or where another layout has the channels."""

    integers = True

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.dim)

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return None if self.dim in (1, -3) else f"it joins along dimension {self.dim}, not along the channels"

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        place = self.dim % len(layouts[0].dims)
        channels = sum(layout.size[1] for layout in layouts)
        first, *others = (layout.with_axis(place, 1, channels) for layout in layouts)
        return None if first is None or any(other != first for other in others) else (Concat(), first)


class Channels(Operator):
    """N C H W -> N C' H W: the channels start, start + step, ... before stop, as Python slices a list."""

    integers = True

    def __init__(self, start: int | None, stop: int | None, step: int | None):
        super().__init__()
        self.start, self.stop, self.step = start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        taken = slice(self.start, self.stop, self.step)
        # torch has no slices that run backwards.
        return x[:, taken] if self.step is None or self.step > 0 else x[:, list(range(x.shape[1])[taken])]


class ChannelIndex(Operator):
    """N C H W -> N C' H W: the channels that `index`, int64 (C'), lists."""

    def __init__(self, index: Tensor):
        super().__init__()
        self.keep("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.index]


class ChannelShuffle(Operator):
    """N (groups * C) H W -> N (C * groups) H W: the first channel of each group, then the second of each, ..."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, self.groups)


@spelled(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Any, dim: Any = 0, *, axis: Any = None) -> tuple[Operator, list[Any]]:
    dim = constant(dim if axis is None else axis, "dim")
    if not isinstance(tensors, list | tuple):
        raise StaysDense("it joins what is no list")
    parts = tensors if all(isinstance(t, Node) for t in tensors) else padded_beside(tensors, dim)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else (Concat(dim), list(parts))


@spelled(operator.getitem)
def _getitem(x: Any, index: Any) -> tuple[Operator, list[Any]]:
    parts = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    only_channels = len(parts) > 1 and all(part in (whole, Ellipsis) for part in (parts[0], *parts[2:]))
    if not only_channels or parts[0] is Ellipsis:
        return crop(x, index)
    if not isinstance(parts[1], slice):
        return ChannelIndex(_indices(parts[1])), [x]
    for bound in (parts[1].start, parts[1].stop, parts[1].step):
        constant(bound, "its slice")
    return Channels(parts[1].start, parts[1].stop, parts[1].step), [x]


@spelled(torch.index_select, "index_select")
def _index_select(input: Any, dim: Any, index: Any) -> tuple[Operator, list[Any]]:
    if constant(dim, "dim") != 1:
        raise StaysDense(f"it takes parts of dimension {dim}, not channels")
    return ChannelIndex(_indices(index)), [input]


@spelled(torch.flip, "flip")
def _flip(input: Any, *places: Any, dims: Any = None) -> tuple[Operator, list[Any]]:
    dims = places if dims is None else dims
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], list | tuple) else tuple(dims)
    return (Channels(None, None, -1), [input]) if dims == (1,) else flip(input, dims)


@spelled(F.channel_shuffle, torch.channel_shuffle)
def _channel_shuffle(input: Any, groups: Any) -> tuple[Operator, list[Any]]:
    return ChannelShuffle(constant(groups, "its number of groups")), [input]


def _indices(index: Any) -> Tensor:
    constant(index, "its index")
    if isinstance(index, list | tuple) and index and all(type(place) is int for place in index):
        return torch.tensor(index)
    if isinstance(index, Tensor) and index.dim() == 1 and index.dtype in (torch.int64, torch.int32):
        return index
    raise StaysDense("it takes channels by something else than a slice or a list")
