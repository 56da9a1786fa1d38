"""Chains of convolutions on lists of pixels: their weights in panels, and the job that native/shares.py does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native.threads import pool
from deltaconvert.backends.cpu.packed import adds_map, has_amx
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Window

# Blocks of pixels that go through a chain together. They share what is read of weights, and what lies between two
# stages has to stay in the cache: two Zen 3 cores, 512 -> 512 with 3x3: 8 run at 72 GFLOP/s, 16 and 32 at 81; 512 ->
# 2048: 83, 77, 74; most others do not care.
GROUP = 16
SHARES = 4  # of a short list for each thread
WIDENED_BYTES = 1 << 20  # of rows that are made floats for a group: half of a Xeon core's own cache
# Results of so many bytes do not stay in the cache anyway: to store them past it saves reading what they replace.
# 64 -> 256 at 180x320 with a skip (59 MB) takes 34 ms of a Zen 3 core, 42 without; 128 -> 512 at 90x160 (29 MB) does
# not care.
MORE_THAN_CACHE = 32 << 20
JOINING = 10  # instructions that add up the places of a vector
LINE = 64  # bytes of the cache: only whole ones may go past it


@dataclass(frozen=True)
class Stage:
    """A convolution and what it does to its sum: add a map, multiply what is below 0 by `slope`, limit to low .. high.

    NaN stays NaN. A depthwise one limits alone.
    """

    conv: Conv2d
    adds: bool
    low: float = -float("inf")
    high: float = float("inf")
    slope: float = 1.0


def stage_of(
    conv: Conv2d,
    followers: Sequence[Operator],
    counts: Sequence[int],
    widths: Sequence[int | None],
    slots: Sequence[int] = (),
) -> tuple[Stage, int]:
    """(the convolution with what it takes on of `followers`, how many of them that is).

    counts: the further inputs that each follower takes; widths: their channels in order, None for a gate; slots: the
    place of the running value among a follower's inputs.
    """
    by_channel, adds = is_depthwise(conv), False
    if followers and not by_channel:
        beside = widths[: counts[0]]
        subtracted = _subtracts(followers[0], len(conv.weight), beside, slots)
        adds = subtracted or adds_map(followers[0], len(conv.weight), beside)
        conv = _negated(conv) if subtracted else conv
    taken = int(adds)
    after = _activation(followers[taken]) if taken < len(followers) else None
    if by_channel and after is not None and "slope" in after:
        after = None
    return Stage(conv, adds, **(after or {})), taken + (after is not None)


def _subtracts(stage: Operator, channels: int, widths: Sequence[int | None], slots: Sequence[int]) -> bool:
    """It takes the running value from a map of so many channels."""
    subtracts = isinstance(stage, Arithmetic) and stage.function == "sub"
    return subtracts and list(widths) == [channels] and slots[:1] == [1]


def _negated(conv: Conv2d) -> Conv2d:
    """Its sums are those of the convolution with another sign, to the bit."""
    bias = None if conv.bias is None else -conv.bias
    return Conv2d(-conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def is_depthwise(conv: Conv2d) -> bool:
    """Each channel by itself."""
    return conv.weight.shape[1] == 1 < conv.groups == len(conv.weight)


def can_chain(convs: Sequence[Conv2d], dtype: torch.dtype) -> bool:
    """A chain computes these: in bfloat16 from pairs of channels, or by whole vectors each channel by itself.

    Where the processor has AMX oneDNN's product of gathered rows may be faster; that was not measured.
    """
    if dtype != torch.bfloat16 or has_amx():
        return dtype == torch.float32
    from deltaconvert.backends.cpu.native.vectors import LANES, MULTIPLIES_PAIRS

    return MULTIPLIES_PAIRS and all(len(c.weight) % LANES == 0 for c in convs if is_depthwise(c))


def multiplies_pairs(conv: Conv2d) -> bool:
    """Its products are of pairs of bfloat16, not of floats."""
    from deltaconvert.backends.cpu.native.vectors import WIDENS

    return conv.weight.dtype == torch.bfloat16 and not WIDENS


def goes_along(conv: Conv2d) -> bool:
    """Its channels are so few that each is summed along what a pixel reads, by vectors: 64 -> 1 with 3x3."""
    from deltaconvert.backends.cpu.native.vectors import LANES

    weight = conv.weight
    floats, left = divmod(weight.shape[1], 2 if multiplies_pairs(conv) else 1)  # of a pixel
    # Products that a panel makes, of all of its channels at once.
    taken = weight.shape[2] * weight.shape[3] * floats
    whole = left == 0 and floats % LANES == 0 and conv.groups == 1
    return whole and len(weight) < LANES and len(weight) * (taken // LANES + JOINING) < taken


def _activation(stage: Operator) -> dict[str, float] | None:
    if not isinstance(stage, Pointwise):
        return None
    options: dict[str, Any] = stage.options
    match stage.function:
        case "relu":
            return {"low": 0.0}
        case "relu6":
            return {"low": 0.0, "high": 6.0}
        case "hardtanh":
            return {"low": options.get("min_val", -1.0), "high": options.get("max_val", 1.0)}
        case "leaky_relu":
            return {"slope": options.get("negative_slope", 0.01)}
    return None


class Chain:
    """The first stage reads a window, or single pixels; the others what the one before made of each pixel.

    scratch: bytes -> address of so much memory.
    """

    in_order = False  # lists of pixels have to be

    def __init__(
        self,
        stages: Sequence[Stage],
        window: Window | None,
        scratch: Callable[[int], int],
        group: int | None = None,
    ):
        from deltaconvert.backends.cpu.native import shares as s

        self._s, self._scratch, self.channels = s, scratch, len(stages[-1].conv.weight)
        self._bytes = stages[0].conv.weight.itemsize
        self._held: list[Any] = []  # what is known by its address alone
        self._job = np.zeros(j.JOB, dtype=np.int64)
        self._table = np.zeros((len(stages), j.STAGE), dtype=np.int64)
        self._adding = [place for place, stage in enumerate(stages) if stage.adds]
        for row, stage in zip(self._table, stages, strict=True):
            row[:] = self._described(stage)
        job, first = self._job, stages[0].conv.weight
        job[j.STAGES], job[j.STAGE_TABLE] = len(stages), self._address(self._table)
        job[j.TAPS_Y : j.TAPS_X + 1] = first.shape[2:]
        if window is not None:
            job[j.HEIGHT : j.OUT_BREADTH + 1] = *window.in_size, *window.out_size
            job[j.STRIDE_Y : j.DILATION_X + 1] = *window.stride, *window.padding, *window.dilation
            job[j.ZEROS] = self._address(np.zeros(self._table[0, j.READ_BYTES] * first.shape[3], np.uint8))
        width, taps = max(max(self._table[:, j.CHANNELS]), 2 * s.LANES), first.shape[2] * first.shape[3]
        wide = 4 * s.ROWS * self._widened_of(taps)  # bytes of a block
        if group is None:
            group = max(1, min(GROUP, WIDENED_BYTES // max(1, wide)))
        job[j.GROUP], job[j.ROW_BYTES] = group, self._bytes * width
        rows = group * s.ROWS
        # As `share` in native/shares.py cuts it up: the addresses of rows that are read, written and added, a flag for
        # each block; lines of taps that are copied; what is added if it is narrow, twice the rows between stages, and
        # rows that are widened.
        size = 8 * (rows * (taps + 2) + group) + group * int(s.line_bytes(job))
        size += rows * (4 * s.LANES + 2 * self._bytes * width) + group * wide
        job[j.SCRATCH_BYTES] = -(-size // 64) * 64

    def run(
        self,
        source: Tensor,
        pixels: Tensor | None,
        count: int,
        adds: Sequence[Tensor],
        out: Tensor,
        *,
        by_place: bool = False,
        limits: Tensor | None = None,
        marks: Tensor | None = None,
        source_from: int = 0,
        out_from: int = 0,
    ) -> None:
        """Compute `count` pixels of `out` (pixels, C'), all of them or those listed, from rows (pixels, C).

        adds: (pixels, C'), one for each stage that adds. by_place: rows of `out` and `adds` are those of the list, one
        after the other. limits: (C'), by which a row must have moved to be stored and marked.
        source_from, out_from: the pixel that the first row of `source`, or of `out`, is of.
        """
        job = self._job
        job[j.PIXELS], job[j.COUNT] = 0 if pixels is None else pixels.data_ptr(), count
        job[j.INPUT] = source.data_ptr() - source_from * source.stride(0) * source.itemsize
        job[j.OUT] = out.data_ptr() - out_from * out.stride(0) * out.itemsize
        job[j.BY_PLACE] = by_place
        job[j.LIMITS] = 0 if limits is None else limits.data_ptr()
        job[j.MARKS] = 0 if marks is None else marks.data_ptr()
        self._table[self._adding, j.ADDS] = [rows.data_ptr() for rows in adds]
        job[j.PAST_THE_CACHE] = self._goes_past(int(job[j.OUT]), self._bytes * count * self.channels)
        threads = pool().count
        job[j.SCRATCH] = self._scratch(threads * int(job[j.SCRATCH_BYTES]))
        self._share(threads, pixels, count)

    def _share(self, threads: int, pixels: Tensor | None, count: int) -> None:
        blocks, most = -(-count // self._s.ROWS), int(self._job[j.GROUP])
        self._s.share(blocks, min(most, -(-blocks // (SHARES * threads))), self._job.ctypes.data)

    def _goes_past(self, address: int, size: int) -> bool:
        width = 2 * self._s.LANES
        panel = self._bytes * width
        whole = panel % LINE == 0 and self.channels % width == 0 and address % panel == 0
        return whole and size > MORE_THAN_CACHE

    def _widened_of(self, taps: int) -> int:
        """Numbers of a pixel that are made floats for one of its stages, of which the first reads so many taps."""
        numbers = self._table[:, j.WIDENED] * self._table[:, j.DEPTH]
        return int(max(taps * numbers[0], *numbers[1:], 0))

    def _described(self, stage: Stage) -> list[int]:
        """A stage's row of the table."""
        weight = stage.conv.weight
        channels, read_bytes = weight.shape[0], weight.shape[1] * stage.conv.groups * weight.itemsize
        pairs, by_channel = multiplies_pairs(stage.conv), is_depthwise(stage.conv)
        along = goes_along(stage.conv)
        by_lines, depth, odd = 0, weight.shape[1], 0
        if pairs and not by_channel:
            by_lines = weight.shape[1] % 2
            depth, odd = divmod(weight.shape[1] * (weight.shape[3] if by_lines else 1), 2)
        widened = weight.dtype == torch.bfloat16 and not (pairs or by_channel or along)
        panels, after = self._panels(stage.conv), np.array([stage.low, stage.high, stage.slope], np.float32)
        described = [depth, channels, len(panels), self._address(panels), 0, self._address(after)]
        return [*described, by_channel, weight.itemsize, by_lines, odd, read_bytes, along, widened]

    def _address(self, array: Any) -> int:
        self._held.append(array)
        return int(array.ctypes.data)

    def _panels(self, conv: Conv2d) -> Any:
        """int64 (panels, fields). The last one may begin before the end of the one before it."""
        s, channels = self._s, len(conv.weight)
        weight = _lines(conv.weight, multiplies_pairs(conv) and not is_depthwise(conv))
        bias = np.zeros(channels, np.float32) if conv.bias is None else conv.bias.float().numpy()
        if is_depthwise(conv):
            own = np.ascontiguousarray(np.concatenate([weight, bias.reshape(1, -1)]))
            return np.array([(0, 0, self._address(own), own[-1].ctypes.data)], dtype=np.int64)
        if goes_along(conv):
            wide = np.zeros(s.LANES, np.float32)
            wide[:channels] = bias
            own = np.ascontiguousarray(weight.T)
            return np.array([(0, 1, self._address(own), self._address(wide))], dtype=np.int64)
        found, column = [], 0
        while column < channels:
            vectors = 2 if channels - column > s.LANES and channels >= 2 * s.LANES else 1
            width = vectors * s.LANES
            column = max(0, min(column, channels - width))
            own, part = np.zeros((len(weight) + 1, width), np.float32), slice(column, column + width)
            own[:-1, :channels], own[-1, :channels] = weight[:, part], bias[part]
            found.append((column, vectors, self._address(own), own[-1].ctypes.data))
            column += width
        return np.array(found, dtype=np.int64)


def _lines(weight: Tensor, in_pairs: bool) -> Any:
    """Floats (taps and channels, channels'); of a depthwise one (taps, channels).

    in_pairs: a float holds two neighbouring bfloat16, as it does in maps: channels of a tap, or if they are odd in
    number of a line of taps, whose last one may have 0 in front of it. They are copied, not counted with.
    """
    taps = weight.permute(2, 3, 1, 0)
    if not in_pairs:
        return taps.reshape(-1, len(weight)).float().numpy()
    lines = taps.flatten(1, 2) if weight.shape[1] % 2 else taps.flatten(0, 1)
    if lines.shape[1] % 2:
        last = lines[:, -1:]
        lines = torch.cat([lines[:, :-1], torch.zeros_like(last), last], 1)
    pairs = lines.reshape(-1, 2, len(weight)).transpose(1, 2).reshape(-1)
    return pairs.view(torch.float32).view(-1, len(weight)).numpy()
