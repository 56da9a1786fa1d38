"""Which input pixels an output pixel reads: the only thing a mask needs to know about an operator.

Every input of an operator has one reach. `spread` takes the mask of that input, bool (N, 1, H, W), to the output
pixels that can have changed, bool (N, 1, H', W'). One invariant holds for all of them: *a mask of ones stays a mask
of ones*. That is why a first frame, a reset or a joined stream needs no branch in any operator.

`reads` goes the other way: the box of input pixels that a box of output pixels reads, None for the whole map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Span = tuple[int, int]  # rows or columns, from the first to the one behind the last
Box = tuple[Span, Span]  # rows, columns


class Reach(Protocol):
    """What an operator's output pixels read of one of its inputs; it may say too much, never too little."""

    def spread(self, mask: Tensor) -> Tensor:
        """bool (N, 1, H, W), input pixels that changed -> (N, 1, H', W'), output pixels that can have."""

    def reads(self, box: Box) -> Box | None:
        """The box of input pixels that the output pixels of `box` read, within the map; None for the whole map."""


@dataclass(frozen=True)
class Pixel:
    """Output pixel (y, x) reads input pixel (y, x): pointwise operators, all channels together."""

    def spread(self, mask: Tensor) -> Tensor:
        return mask

    def reads(self, box: Box) -> Box | None:
        return box


@dataclass(frozen=True)
class Everything:
    """Every output pixel reads the whole map of its stream: a gate, a global pool."""

    size: Size

    def spread(self, mask: Tensor) -> Tensor:
        changed = mask.flatten(1).any(1).view(-1, 1, 1, 1)
        return changed.expand(-1, 1, *self.size).contiguous()

    def reads(self, box: Box) -> Box | None:
        return None


class Window:
    """Output pixel y reads input pixels y * stride - padding + k * dilation: convolutions and pools.

    `transposed` turns the arrows round: input pixel y writes output pixels y * stride - padding + k * dilation.
    All sizes are (height, width); `padding` is the top and left one, the size of the output settles the rest.
    seen: the window through which changes are seen. It is this one, or a smaller one inside it (`narrowed`): then the
    operator still reads all of the window, but what changed elsewhere in it does not make the pixel a candidate.
    """

    def __init__(
        self,
        kernel: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        in_size: Size,
        out_size: Size,
        *,
        transposed: bool = False,
    ):
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.in_size, self.out_size, self.transposed = in_size, out_size, transposed
        reached = self._reached(torch.ones(1, 1, *in_size, dtype=torch.bool))
        self.orphans = None if bool(reached.all()) else ~reached
        self.seen = self

    def spread(self, mask: Tensor) -> Tensor:
        if self.seen is not self:
            return self.seen.spread(mask)
        out = self._reached(mask)
        return out if self.orphans is None else _with_orphans(out, self.orphans, mask)

    def narrowed(self) -> Window:
        """The same window, but changes are seen only in its middle: each input pixel reaches one output pixel. Returns
        the window itself if some pixels would then reach none, or be reached by none."""
        parts = [self._middle(axis) for axis in (0, 1)]
        if self.transposed or None in parts:
            return self
        kernel, padding = zip(*parts, strict=True)  # type: ignore[arg-type]
        if kernel == self.kernel:
            return self
        seen = Window(kernel, self.stride, padding, (1, 1), self.in_size, self.out_size)
        if seen.orphans is not None:
            return self
        narrow = copy.copy(self)
        narrow.seen = seen
        return narrow

    def _middle(self, axis: int) -> Size | None:
        """(taps, padding) of the middle taps, as many as the stride, where these see all of the map."""
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        if kernel <= stride or (stride > 1 and dilation > 1):
            return (kernel, self.padding[axis]) if dilation == 1 else None
        for first in ((kernel - stride + 1) // 2, (kernel - stride) // 2):
            start = first * dilation - self.padding[axis]
            if start <= 0 and start + stride * self.out_size[axis] >= self.in_size[axis]:
                return stride, -start
        return None

    def reads(self, box: Box) -> Box | None:
        return self._span(0, box[0]), self._span(1, box[1])

    def _span(self, axis: int, span: Span) -> Span:
        stride, padding = self.stride[axis], self.padding[axis]
        far = (self.kernel[axis] - 1) * self.dilation[axis]  # from its first tap to its last
        if self.transposed:
            first, last = -((far - padding - span[0]) // stride), (span[1] - 1 + padding) // stride
        else:
            first, last = span[0] * stride - padding, (span[1] - 1) * stride - padding + far
        size = self.in_size[axis]
        return min(max(first, 0), size), min(max(last + 1, 0), size)

    def _reached(self, mask: Tensor) -> Tensor:
        # A square window is a column of taps after a row of taps: kh + kw passes instead of kh * kw.
        for axis in (0, 1):
            mask = _spread_by_taps(
                mask,
                2 + axis,
                self.kernel[axis],
                self.stride[axis],
                self.padding[axis],
                self.dilation[axis],
                self.out_size[axis],
                self.transposed,
            )
        return mask


class Sources:
    """Output row i reads the input rows rows[i, :], output column j the columns cols[j, :]: resampling, padding, crops.

    rows: int64 (H', taps), cols: int64 (W', taps); a tap may repeat where a pixel has fewer sources, and -1 lies
    outside the map.
    """

    def __init__(self, rows: Tensor, cols: Tensor):
        self.rows, self.cols = rows, cols
        inside = (rows >= 0).any(1).view(-1, 1) & (cols >= 0).any(1)
        self.orphans = None if bool(inside.all()) else ~inside
        # Copies of the tables on devices, made once: a copy would wait for the device.
        self._there: dict[torch.device, Sources] = {}

    @property
    def single(self) -> bool:
        """Each output pixel is a copy of one input pixel, or a constant."""
        return self.rows.shape[1] == 1 and self.cols.shape[1] == 1

    def on(self, device: torch.device) -> Sources:
        if self.rows.device == device:
            return self
        if device not in self._there:
            self._there[device] = Sources(self.rows.to(device), self.cols.to(device))
        return self._there[device]

    def spread(self, mask: Tensor) -> Tensor:
        if self.rows.device != mask.device:
            return self.on(mask.device).spread(mask)
        out = mask
        for dim, table in ((2, self.rows), (3, self.cols)):
            if self.orphans is not None:
                # A line of nothing behind the last one, which is where -1 leads.
                out = F.pad(out, (0, 0, 0, 1) if dim == 2 else (0, 1))
                table = table.remainder(out.shape[dim])
            # With few lines of many taps, one pass over all taps is faster than a pass for each.
            if table.shape[1] > table.shape[0]:
                out = _lines(out, dim, table.view(-1)).unflatten(dim, table.shape).any(dim + 1)
                continue
            parts = [_lines(out, dim, table[:, tap]) for tap in range(table.shape[1])]
            out = parts[0]
            for part in parts[1:]:
                out = out | part
        return out if self.orphans is None else _with_orphans(out, self.orphans, mask)

    def reads(self, box: Box) -> Box | None:
        taps = (table[slice(*span)] for table, span in zip((self.rows, self.cols), box, strict=True))
        inside = [part[part >= 0] for part in taps]
        if not all(part.numel() for part in inside):
            return (0, 0), (0, 0)
        rows, columns = ((int(part.min()), int(part.max()) + 1) for part in inside)
        return rows, columns


def narrowed(reach: Reach) -> Reach:
    """A window through whose middle alone changes are seen; other reaches are as narrow as they can be."""
    return reach.narrowed() if isinstance(reach, Window) else reach


def overlooks(reach: Reach) -> bool:
    """Whether an output pixel can read a change that does not make it a candidate."""
    return isinstance(reach, Window) and reach.seen is not reach


def seen_by(reach: Reach) -> Reach:
    """The plain reach that spreads masks."""
    if not isinstance(reach, Window):
        return reach
    seen, ones = reach.seen, (1, 1)
    alike = seen.kernel == seen.stride == ones and seen.padding == (0, 0) and seen.in_size == seen.out_size
    return Pixel() if alike and seen is not reach else seen


def _with_orphans(out: Tensor, orphans: Tensor, mask: Tensor) -> Tensor:
    """Output pixels that only see padding hold a constant; they follow a mask of ones, and nothing else."""
    return out | orphans.to(mask.device) & mask.flatten(1).all(1).view(-1, 1, 1, 1)


def _lines(mask: Tensor, dim: int, indices: Tensor) -> Tensor:
    """The rows or columns `indices` of a mask. For columns gather takes half of index_select's time."""
    if dim == 2:
        return mask.index_select(2, indices)
    return mask.gather(3, indices.expand(*mask.shape[:3], -1))


def stretched(shape: Sequence[int], out_shape: Sequence[int]) -> Reach:
    """The reach of a map that is stretched to a larger one: along the height, along the width, or both."""
    (height, width), (out_height, out_width) = shape[2:], out_shape[2:]
    if (height, width) == (out_height, out_width):
        return Pixel()
    if height == width == 1:
        return Everything((out_height, out_width))
    rows, cols = torch.arange(out_height).view(-1, 1), torch.arange(out_width).view(-1, 1)
    return Sources(rows * (height > 1), cols * (width > 1))


def _spread_by_taps(
    mask: Tensor, dim: int, kernel: int, stride: int, padding: int, dilation: int, out: int, transposed: bool
) -> Tensor:
    """Through a window along `dim`: out[y] = any over k of mask[y * stride - padding + k * dilation]; transposed,
    out[y * stride - padding + k * dilation] |= mask[y]."""
    if kernel == 1 and stride == 1 and padding == 0 and out == mask.shape[dim]:
        return mask
    shape = list(mask.shape)
    shape[dim] = out
    spread = mask.new_zeros(shape)
    coarse, fine = (mask, spread) if transposed else (spread, mask)  # one pixel for each stride of the other
    size, fine_size = coarse.shape[dim], fine.shape[dim]
    for k in range(kernel):
        offset = k * dilation - padding
        first = max(0, -(offset // stride))  # the first y whose tap lies inside the fine map
        count = min(size, (fine_size - 1 - offset) // stride + 1) - first
        if count > 0:
            taps = fine.narrow(dim, first * stride + offset, (count - 1) * stride + 1)
            taps = taps if stride == 1 else _every(taps, dim, stride)
            pixels = coarse.narrow(dim, first, count)
            written, read = (taps, pixels) if transposed else (pixels, taps)
            written |= read
    return spread


def _every(x: Tensor, dim: int, stride: int) -> Tensor:
    return x[:, :, ::stride] if dim == 2 else x[..., ::stride]
