"""Means, maxima and moments of whole maps, by boxes: a change reads only its own box again, and there are few boxes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch

from deltaconvert.backends.cuda.kernels import TYPES, on_current_stream
from deltaconvert.backends.cuda.marks import Listed
from deltaconvert.ops.base import Operator
from deltaconvert.ops.fused import head_of
from deltaconvert.ops.group_norm import Statistics
from deltaconvert.ops.resample import AdaptivePool2d
from deltaconvert.reach import Window

THREADS = 256  # of kernels/mean.cu
AT_ONCE = 8  # loads of a thread that are in flight together
PIXELS = 16  # that a thread sums: enough to have many loads in flight, few enough to be done soon


class BoxMeans:
    """As an operator: the mean of each box of side x side pixels; the last boxes may be smaller.

    kind: "avg"; or "max", the largest value instead.
    """

    elementwise = False

    def __init__(self, side: int, kind: str):
        self.side, self.kind = side, kind

    def reach(self, size: Sequence[int]) -> Window:
        height, width = size
        box, out = (self.side, self.side), (-(-height // self.side), -(-width // self.side))
        return Window(box, box, (0, 0), (1, 1), (height, width), out)

    def form(self, source: Any) -> tuple[int, torch.dtype]:
        """Channels and type of the result."""
        return source.values.shape[1], source.values.dtype


class BoxMoments(BoxMeans):
    """As an operator: the mean of each channel in a box, and behind all means the sums of squares around them."""

    def __init__(self, side: int):
        super().__init__(side, "moments")

    def form(self, source: Any) -> tuple[int, torch.dtype]:
        wide = torch.float64 if source.values.dtype == torch.float64 else torch.float32
        return 2 * source.values.shape[1], wide


class InBoxes:
    """A step that reads the means of a map's boxes, which it computes and keeps itself."""

    def __init__(self, boxes: Any, step: Any):
        self._boxes, self._step, self.edge = boxes, step, step.edge
        self.edge.beside = boxes.edge.state_bytes()

    def run(self) -> None:
        self._boxes.run()
        self._step.run()

    def rebuild(self) -> None:
        """Compute the boxes again, after the maps of edges were replaced."""
        edge = self._boxes.edge
        with on_current_stream(edge.values.device):
            self._boxes.compute(every_pixel(edge))


def every_pixel(edge: Any) -> Listed:
    n, _, height, width = edge.values.shape
    pixels = n * height * width
    places = torch.arange(pixels, dtype=torch.int32, device=edge.values.device)
    return Listed(places, places.new_tensor([pixels]), -1)


def boxes_of(operator: Operator, source: Any, edge: Any) -> BoxMeans | None:
    """What to keep of each box, if an operator, or the head of a fused one, reduces a whole large map."""
    head = head_of(operator)
    whole = isinstance(head, AdaptivePool2d) and tuple(edge.values.shape[2:]) == (1, 1)
    if source.values.dtype not in TYPES or not (whole or isinstance(operator, Statistics)):
        return None
    _, channels, height, width = source.values.shape
    pixels = THREADS // lanes_of(channels, source.values.dtype) * PIXELS
    if isinstance(operator, Statistics):
        return BoxMoments(_largest_side(lambda side: side**2 <= pixels))
    if height * width <= 4 * pixels:
        return None
    # A box has about as many pixels as the map has boxes: a full frame waits for both, one after the other.
    return BoxMeans(_largest_side(lambda side: side**4 <= 2 * height * width), head.kind)  # type: ignore[union-attr]


def _largest_side(fits: Callable[[int], bool]) -> int:
    """A power of two."""
    side = 1
    while fits(2 * side):
        side *= 2
    return side


def lanes_of(channels: int, dtype: torch.dtype, pixels: int | None = None) -> int:
    """How many neighbouring threads share a pixel, each with a vector of channels. pixels: of a window, if there are
    few
    windows: then so few that each thread loads all of its pixels at once."""
    vectors = -(-channels * dtype.itemsize // 16)
    lanes = min(32, 1 << (vectors - 1).bit_length())
    while pixels is not None and lanes > 4 and pixels * lanes > THREADS * AT_ONCE:
        lanes //= 2
    return lanes


def packed_mean(operator: Operator | BoxMeans, source: Any) -> bytes:
    """struct Head of kernels/mean.cu."""
    _, _, height, width = source.values.shape
    window = (operator.side, operator.side) if isinstance(operator, BoxMeans) else (height, width)
    full = source.of_boxes or (1, height, width)
    numbers = (source.pitch, height, width, *window, full[0], *full, 0)
    return struct.pack("=Q10i", source.values.data_ptr(), *numbers)
