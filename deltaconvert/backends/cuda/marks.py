"""Masks of changed pixels on the device, and which of them cover others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.reach import Pixel, Reach, Window

# The largest window that replaces several (`seen_from`). Measured (ResNet-50, H100): none 0.309 ms at 1 % and 1.57 at
# 100 %, 7 0.287 and 1.585, 13 0.296 and 1.61.
WIDEST = 7


@dataclass(eq=False)
class Marks:
    """The changed pixels of an edge.

    bits: int32 (N, H, (W + 31) / 32), one bit a pixel. changed: int32 (N), how many in each stream.
    source: the last comparing node that they depend on, by its place among the steps.
    listed: a list of them, if there is one.
    seen: the marks, and the window on them, that these follow from.
    covers: Marks whose pixels are always among these.
    can_list: whether the kernel that makes the marks can list them as well; own: that list, if a step needs it.
    """

    size: tuple[int, int]
    bits: Tensor
    changed: Tensor
    source: int
    listed: Listed | None = None
    seen: tuple[Window, Marks] | None = None
    covers: frozenset[Marks] = frozenset()
    can_list: bool = False
    own: Listed | None = None

    def dense(self) -> Tensor:
        """bool (N, 1, H, W). Where nothing changed, the bits are still those of the frame before."""
        places = torch.arange(32, dtype=torch.int32, device=self.bits.device)
        marked = (self.bits[..., None] >> places & 1).bool().flatten(2)[..., : self.size[1]].unsqueeze(1)
        return marked & (self.changed > 0).view(-1, 1, 1, 1)

    def put(self, mask: Tensor) -> None:
        """Set the marks from bool (N, 1, H, W)."""
        self.bits.copy_(bits_of(mask))
        self.changed.copy_(mask.sum((1, 2, 3)))

    def cover(self, other: Marks) -> bool:
        if other is self or other in self.covers:
            return True
        if self.seen is None or other.seen is None or self.seen[1] is not other.seen[1]:
            return False
        return _holds(self.seen[0], other.seen[0])


@dataclass(eq=False, kw_only=True)
class Enlarged(Marks):
    """Marks of a map with `factor` x `factor` pixels for each pixel of another, whose size and bits these are."""

    factor: int

    def dense(self) -> Tensor:
        every = super().dense()
        return every.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@dataclass(eq=False)
class Listed:
    """A list of pixels on the device.

    launch: how many kernels had been launched when it was made. bits: the same pixels as a mask, or None.
    """

    places: Tensor  # int32
    count: Tensor  # int32 (1)
    launch: int = 0
    aside: int = 0  # the mark that Backend.join must wait for, if it is made aside
    bits: Tensor | None = None


def bits_of(mask: Tensor) -> Tensor:
    """bool (N, 1, H, W) as the bits of Marks."""
    places = torch.arange(32, dtype=torch.int32, device=mask.device)
    padded = F.pad(mask[:, 0].to(torch.int32), (0, -mask.shape[3] % 32))
    return (padded.unflatten(2, (-1, 32)) << places).sum(3, dtype=torch.int32)


def list_of(mask: Tensor) -> Listed:
    """The pixels of bool (N, 1, H, W), row by row."""
    places = mask.flatten().nonzero().flatten().int()
    return Listed(places, places.new_tensor([len(places)]), bits=bits_of(mask))


def needed(pairs: Sequence[tuple[Reach, Marks]]) -> list[tuple[Reach, Marks]]:
    """The inputs without those whose changes another input covers, as far as they are read."""
    kept: list[tuple[Reach, Marks]] = []
    for reach, marks in pairs:
        if any(_shows(r, m, reach, marks) for r, m in kept):
            continue
        kept = [(r, m) for r, m in kept if not _shows(reach, marks, r, m)]
        kept.append((reach, marks))
    return kept


def _shows(reach: Reach, marks: Marks, other: Reach, source: Marks) -> bool:
    """Whether `marks` seen through `reach` cover `source` seen through `other`. Examples: a 1x1 convolution with
    stride 2 beside a 3x3 one that is read pixel by pixel, a shortcut beside a 3x3 convolution of the same pixels."""
    if isinstance(other, Pixel):
        return keeps_places(reach) and marks.cover(source)
    if not isinstance(reach, Pixel) or marks.seen is None or not isinstance(other, Window):
        return False
    window, behind = marks.seen
    views = ((other, source), seen_from(other, source))
    return any(m is behind and isinstance(r, Window) and _holds(window, r) for r, m in views)


def seen_from(reach: Reach, marks: Marks) -> tuple[Reach, Marks]:
    """The same pixels as one window on earlier marks, so that they need not wait for these: two windows of 3x3, one
    after the other, are one of 5x5. Not where some pixels only see padding: the larger window sees into the map."""
    if not isinstance(reach, Window) or reach.transposed or reach.dilation != (1, 1) or marks.seen is None:
        return reach, marks
    if reach.orphans is not None:
        return reach, marks
    inner, source = marks.seen
    kernel = (reach.kernel[0] + inner.kernel[0] - 1, reach.kernel[1] + inner.kernel[1] - 1)
    if max(kernel) > WIDEST or not _is_centred(inner):
        return reach, marks
    padding = (reach.padding[0] + inner.padding[0], reach.padding[1] + inner.padding[1])
    return Window(kernel, reach.stride, padding, (1, 1), inner.in_size, reach.out_size), source


def _is_centred(window: Window) -> bool:
    """A window that reaches equally far in all directions, on a map of the same size."""
    sides = zip(window.kernel, window.padding, window.dilation, window.stride, strict=True)
    alike = all(k % 2 and p == k // 2 and d == s == 1 for k, p, d, s in sides)
    return alike and not window.transposed and window.in_size == window.out_size


def keeps_places(reach: Reach) -> bool:
    """Whether every changed pixel of the input is a candidate itself."""
    if isinstance(reach, Window):
        offsets = zip(reach.kernel, reach.padding, reach.dilation, strict=True)
        return (
            not reach.transposed
            and reach.stride == (1, 1)
            and reach.in_size == reach.out_size
            and all(p % d == 0 and p // d < k for k, p, d in offsets)
        )
    return isinstance(reach, Pixel)


def _holds(outer: Window, inner: Window) -> bool:
    """Whether the taps of a window are among those of another over the same map."""
    if (
        outer.transposed
        or inner.transposed
        or outer.out_size != inner.out_size
        or outer.stride != inner.stride
    ):
        return False
    (rows, cols), (inner_rows, inner_cols) = _taps(outer), _taps(inner)
    return inner_rows <= rows and inner_cols <= cols


def _taps(window: Window) -> list[set[int]]:
    """The taps of rows and of columns, relative to the output pixel."""
    sides = zip(window.kernel, window.padding, window.dilation, strict=True)
    return [{k * dilation - padding for k in range(kernel)} for kernel, padding, dilation in sides]
