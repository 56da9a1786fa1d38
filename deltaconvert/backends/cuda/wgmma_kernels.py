"""Convolutions by Hopper's products of matrices: weights in the order of the sum, parameters, launches."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cuda.conv_kernels import (
    SHARED_BYTES,
    Head,
    as_tf32,
    blocks_at_once,
    has_threshold,
    padded_bias,
    table_of,
    weight_rows,
)
from deltaconvert.backends.cuda.layout import STEP, depth_of, piece_of, window_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.ops.conv import Conv2d
from deltaconvert.reach import Window

Also = tuple[Conv2d, Any]  # a 1x1 convolution that is added to another one, and the map that it reads
ROWS = 64  # of a tile of kernels/conv_behind.cu
MATRIX_BYTES = ROWS * STEP
STREAMS = 64  # for which a block of kernels/conv_wgmma.cu counts marks in shared memory
NOTHING_TO_COMPARE = (np.uint64(0), np.uint64(0), np.float32(0))  # marks, their count, threshold


@dataclass
class Order:
    """The order in which a sum adds the pieces of a window's pixels, then those of a second map's pixel: each piece is
    a (tap, piece of its pixel).

    If a pixel's channels are whole steps, all taps of the same channels follow each other, since most of what a tap
    reads was just read for its neighbour."""

    pieces: list[tuple[int, int]]
    of_window: int  # how many pieces belong to the window
    taps: int  # of the window; a second map's is one more
    in_step: int
    alike: bool  # whether the pieces of a step are always of one tap
    offsets: list[int]  # of each tap, in pieces
    # Parts of struct Head of kernels/gather.cuh: from `pitch` on, without the number of steps; and from `also_pitch`
    # on.
    window: tuple[int, ...]
    second: tuple[int, ...]

    @classmethod
    def of(cls, operator: Any, window: Window | None, source: Any, also: Also | None = None) -> Order:
        _, _, kh, kw = operator.weight.shape
        values = piece_of(source) // source.values.dtype.itemsize
        # The distance of two pixels, and the length of a pixel, in pieces.
        apart, depth = source.pitch // values, depth_of(source) // values
        in_step = STEP // piece_of(source)
        group = in_step if depth % in_step == 0 else depth
        pieces = [
            (tap, first + part)
            for first in range(0, depth, group)
            for tap in range(kh * kw)
            for part in range(group)
        ]
        of_window, beside = len(pieces), 0
        second: tuple[int, ...] = (0,) * 6
        if also is not None:
            beside = depth_of(also[1]) // values
            second = _second_map(*also)
        pieces += [(kh * kw, part) for part in range(beside)]
        _, height, across, _, _, sh, sw, ph, pw, dh, dw = window_of(source, window)
        return cls(
            pieces,
            of_window,
            kh * kw,
            in_step,
            depth % in_step == 0 == beside % in_step,
            [(y * dh * across + x * dw) * apart for y in range(kh) for x in range(kw)] + [0],
            (apart, height, across, sh, sw, ph, pw, kh, kw, dh, dw),
            second,
        )

    @property
    def steps(self) -> int:
        return -(-len(self.pieces) // self.in_step)

    def weights(self, operator: Any, source: Any) -> Tensor:
        """outputs x pieces of the window x values"""
        weight = weight_rows(operator)
        outputs, kh, kw, channels = weight.shape
        depth = depth_of(source)
        values = piece_of(source) // source.values.dtype.itemsize
        spaced = weight.new_zeros(outputs, kh * kw, depth, dtype=torch.float32)
        spaced[..., :channels] = weight.flatten(1, 2)
        at = [tap * (depth // values) + part for tap, part in self.pieces[: self.of_window]]
        return spaced.view(outputs, -1, values)[:, torch.tensor(at, device=weight.device)]

    def table(self, steps: int) -> list[tuple[int, int]]:
        """struct Tap of kernels/gather.cuh: one for each step where its pieces are of one tap, else one for each."""
        apart = self.in_step if self.alike else 1
        taps = [(self.offsets[tap] + part, tap) for tap, part in self.pieces[::apart]]
        return taps + [(0, 63 if self.taps > 31 else 31)] * (steps * self.in_step // apart - len(taps))

    def head(self, source: Any, weights: Tensor, bias: Tensor, taps: Tensor) -> bytes:
        """struct Head of kernels/gather.cuh"""
        addresses = [t.data_ptr() for t in (source.values, weights, bias, taps)]
        numbers = *self.window, self.steps, len(source.values), *self.second
        return struct.pack("=4Q18iQ", *addresses, *numbers)


def swizzled(weights: Tensor, width: int, steps: int, dtype: torch.dtype) -> Tensor:
    """outputs x pieces x values as the kernels read them: blocks of `width` outputs, steps, rows of STEP bytes."""
    outputs, pieces, values = weights.shape
    blocks = -(-outputs // width)
    rows = weights.new_zeros(blocks * width, steps * (STEP // (values * dtype.itemsize)), values)
    rows[:outputs, :pieces] = weights
    chunks = torch.arange(8, device=rows.device)
    places = chunks ^ (torch.arange(width, device=rows.device).view(-1, 1) % 8)
    tiles = rows.view(blocks, width, steps, 8, 16 // dtype.itemsize).permute(0, 2, 1, 3, 4)
    tiles = tiles.gather(3, places.view(1, 1, width, 8, 1).expand(tiles.shape))
    return as_tf32(tiles) if dtype == torch.float32 else tiles.to(dtype)


def by_wgmma(
    operator: Any,
    window: Window | None,
    source: Any,
    edge: Any,
    tile: dict[str, int],
    up: tuple[int, int] = (1, 1),
    also: Also | None = None,
) -> Head:
    """kernels/conv_wgmma.cu

    up: the factor of a transposed convolution that is computed as `operator`, a 1x1 convolution.
    """
    dtype, outputs, width = edge.values.dtype, len(weight_rows(operator)), tile["BN"]
    order = Order.of(operator, window, source, also)
    even = order.steps + order.steps % 2  # small tiles take two steps at a time
    rows = order.weights(operator, source)
    if also is not None:
        rows = torch.cat([rows, _of_pixel(*also)], 1)
    weights = swizzled(rows, width, even, dtype)
    bias = _bias_of(operator, also, len(weights) * width, weights.device)
    taps = order.table(even)
    kept = weights, bias, table_of("=2i", taps, weights.device)
    compares = has_threshold(edge) and up == (1, 1) and width >= outputs
    shared_bytes = _shared_bytes(tile, order, len(taps), also is not None, compares)
    return Head(
        "conv_wgmma.cu",
        order.head(source, *kept),
        "conv",
        {
            "AT_ONCE": blocks_at_once(shared_bytes),
            "PIECE": piece_of(source),
            **({"STEP_TAPS": 1} if order.alike else {}),
            "MANY_TAPS": int(order.taps > 31),
            **({"COMPARE": 1, "WEIGHTED": int(edge.is_weighted)} if compares else {}),
            **({"ALSO": 1} if also else {}),
            **({} if up == (1, 1) else {"UP_H": up[0], "UP_W": up[1]}),
            **tile,
        },
        threads=(2 * tile["BM"] + _loaders(tile)) * tile.get("STAY", 1),
        shared_bytes=shared_bytes,
        weights=kept,
        channels=outputs // (up[0] * up[1]),
        cluster=tile["SPLIT"],
        up=up,
        compares=compares,
        octets="OCTETS" in tile,
        more=(edge.marks.bits, edge.marks.changed, edge.limits) if compares else NOTHING_TO_COMPARE,
    )


def _loaders(tile: dict[str, int]) -> int:
    return 128 if tile["BM"] == 64 else 0


def _shared_bytes(tile: dict[str, int], order: Order, taps: int, adds: bool, compares: bool) -> int:
    if "STAY" in tile:
        return stay_bytes(tile, order.steps, compares)
    return max(_walk_bytes(tile, order, taps, adds, compares), whole_bytes(tile))


def _walk_bytes(tile: dict[str, int], order: Order, taps: int, adds: bool, compares: bool) -> int:
    """Shared memory of kernels/few.cuh and many.cuh, as conv_wgmma.cu says."""
    rows, width = tile["BM"], tile["BN"]
    stages = tile["STAGES"] * (rows + width) * STEP
    slots = stages // (128 * STEP)  # of the smallest tile
    of_rows = rows * ((21 if order.taps > 31 else 17) + (4 if adds else 0)) + width * 8
    of_rows += 4 * STREAMS if compares else 0
    if _loaders(tile):  # TURNS is 4 in place of 2, and each slot has two barriers
        of_rows += rows * 9 + width * 8 + slots * 8 + 56
    return stages + of_rows + (slots + 1) * 8 + 8 * taps


def whole_bytes(tile: dict[str, int]) -> int:
    """Shared memory of kernels/whole.cuh."""
    if "WHOLE" not in tile:
        return 0
    around, rows = tile["WHOLE"] - 1, 2 * tile["EACH"]
    pixels = (rows + around) * (64 + around)
    if tile["FLAT"]:
        pixels = 64 * rows + around * (tile["FLAT"] + 1)
    halo = pixels * tile["PART"]
    return -(-halo // 1024) * 1024 + tile["SLOTS"] * (tile["BN"] * STEP + 16)


def stay_bytes(tile: dict[str, int], steps: int, compares: bool) -> int:
    """Shared memory of kernels/stay.cuh: weights, slots, struct Gang, taps."""
    gangs, slots, width = tile["STAY"], tile["STAGES"], tile["BN"]
    rows = 4 * width * 4 + 7 * ROWS * 4 + 4 * ROWS // 32 * 4 + (4 * STREAMS if compares else 0)
    gang = -(-(rows + 16 * slots + 64) // 16) * 16
    return steps * width * STEP + gangs * (slots * MATRIX_BYTES + gang + 128 * steps) + 16


def by_both(
    operator: Conv2d,
    window: Window | None,
    source: Any,
    edge: Any,
    between: Tail,
    behind: Conv2d,
    also: Also | None = None,
) -> Head:
    """kernels/conv_behind.cu

    between: the operators between the two convolutions. also: a 1x1 convolution that is added to the second.
    """
    dtype, device = edge.values.dtype, edge.values.device
    order = Order.of(operator, window, source, also)
    beside, groups = also_steps(also), -(-len(behind.weight) // ROWS)
    steps = order.steps - beside
    own = swizzled(order.weights(operator, source), ROWS, steps, dtype)
    weights = swizzled(_of_step(behind, dtype, also), ROWS, 1 + beside, dtype)
    bias, behind_bias = _bias_of(operator, None, ROWS, device), _bias_of(behind, also, groups * ROWS, device)
    taps = table_of("=2i", order.table(order.steps), device)
    slots = slots_of_both(steps, groups, beside)
    head = order.head(source, own, bias, taps)
    return Head(
        "conv_behind.cu",
        head + struct.pack("=2Q", weights.data_ptr(), behind_bias.data_ptr()),
        "conv",
        {
            "FIRST_STEPS": steps,
            "ALSO_STEPS": beside,
            "GROUPS": groups,
            "SLOTS": slots,
            "BETWEEN": between.macros()["FINISH"],
        },
        threads=512,
        shared_bytes=both_bytes(steps, groups, beside, slots),
        weights=(own, weights, bias, behind_bias, taps),
        channels=len(behind.weight),
        more=NOTHING_TO_COMPARE,
    )


def also_steps(also: Also | None) -> int:
    return 0 if also is None else depth_of(also[1]) * also[1].values.dtype.itemsize // STEP


def slots_of_both(steps: int, groups: int, also: int) -> int:
    """As many slots as there is room for; 0 if that is too few."""
    fits = [
        slots
        for slots in range(3 + also, 10)
        if both_bytes(steps, groups, also, slots) <= SHARED_BYTES - 1024
    ]
    return max(fits, default=0)


def both_bytes(steps: int, groups: int, also: int, slots: int) -> int:
    """Shared memory of kernels/conv_behind.cu: matrices, struct Rest."""
    rows = 4 * ROWS * 4 + 2 * ROWS * 4 + (ROWS * 4 if also else 0) + 4 * ROWS * 4 + 4 * ROWS // 32 * 4
    half = -(-(rows + 16 * slots + 64 + 8 * (steps + also)) // 16) * 16
    matrices = steps + groups * (1 + also) + 2 * (slots + 1)
    return matrices * MATRIX_BYTES + groups * ROWS * 4 + 2 * half + 16


def _of_step(operator: Conv2d, dtype: torch.dtype, also: Also | None) -> Tensor:
    """The weights of a 1x1 convolution over the channels of a step, and of one that is added."""
    rows = _in_pieces(operator, STEP // dtype.itemsize, 16 // dtype.itemsize)
    return rows if also is None else torch.cat([rows, _of_pixel(*also)], 1)


def _of_pixel(operator: Conv2d, source: Any) -> Tensor:
    """The weights of a 1x1 convolution: outputs x pieces of a pixel x values."""
    return _in_pieces(operator, depth_of(source), piece_of(source) // source.values.dtype.itemsize)


def _in_pieces(operator: Conv2d, depth: int, values: int) -> Tensor:
    """The weights of a 1x1 convolution with zeros up to `depth` channels: outputs x pieces x values."""
    weight = operator.weight.flatten(1)
    rows = weight.new_zeros(len(weight), depth, dtype=torch.float32)
    rows[:, : weight.shape[1]] = weight
    return rows.view(len(rows), -1, values)


def _bias_of(operator: Any, also: Also | None, length: int, device: torch.device) -> Tensor:
    bias = padded_bias(operator, length, torch.float32, device)
    return bias if also is None else bias + padded_bias(also[0], length, torch.float32, device)


def _second_map(operator: Conv2d, source: Any) -> tuple[int, ...]:
    """The part of struct Head from `also_pitch` on."""
    pieces = source.pitch * source.values.dtype.itemsize // piece_of(source)
    return (pieces, *source.values.shape[2:], *operator.stride, source.values.data_ptr())
