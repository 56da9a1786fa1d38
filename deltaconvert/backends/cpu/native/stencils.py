"""The inner loop of a depthwise convolution as vector instructions, which numba does not make of its own loops.

Some channels of a block of pixels stay in registers from the first tap to the last:

    for tap:    sum[row, vector] += row's input[tap][vector] * weights[tap][vector]

What is read is given by the addresses of rows, tap after tap, so a block can be any pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.native.vectors import LANES, LONG, ROWS, Vectors, addresses, loop


def sums(kind: type[Vectors] = Vectors) -> Any:
    """numba intrinsic (table, taps, channels, weights, bias, low, high, out, step), addresses among them.

    Sums over taps of ROWS pixels, plus bias (channels), limited to low .. high; NaN stays NaN.
    table: int64 (taps, ROWS), of rows of `channels` numbers; weights: (taps, channels). The rows of `out` are `step`
    numbers apart. With kind=Pairs rows are of bfloat16, in whole vectors; weights and bias stay floats.
    """

    @intrinsic
    def kernel(typing, table, taps, channels, weights, bias, low, high, out, step):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            table, *others = arguments

            def rows_of(tap: Any) -> list[Any]:
                return addresses(builder, table, builder.mul(tap, LONG(ROWS)), ROWS)

            _sums(kind, builder, rows_of, *others)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5, *[types.float32] * 2, types.intp, types.intp), code

    return kernel


def sums_nearby(kind: type[Vectors] = Vectors) -> Any:
    """numba intrinsic (table, offsets, taps, ...): as sums, where all pixels read alike.

    table: int64 (ROWS), of rows; offsets: int64 (taps), in bytes from them.
    """

    @intrinsic
    def kernel(typing, table, offsets, taps, channels, weights, bias, low, high, out, step):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            table, offsets, *others = arguments
            own = addresses(builder, table, LONG(0), ROWS)

            def rows_of(tap: Any) -> list[Any]:
                (offset,) = addresses(builder, offsets, tap, 1)
                return [builder.add(row, offset) for row in own]

            _sums(kind, builder, rows_of, *others)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6, *[types.float32] * 2, types.intp, types.intp), code

    return kernel


def _sums(
    kind: type[Vectors],
    b: Any,
    rows_of: Callable[[Any], list[Any]],
    taps: Any,
    channels: Any,
    *others: Any,
) -> None:
    """rows_of: tap -> the addresses of the rows that the pixels read by it."""
    done = LONG(0)
    for vectors, width in ((2, LANES), (1, LANES), (1, 4), (1, 1))[: 4 if kind is Vectors else 2]:
        pieces = b.udiv(b.sub(channels, done), LONG(vectors * width))
        with cgutils.for_range(b, pieces, intp=LONG) as piece:
            first = b.add(done, b.mul(piece.index, LONG(vectors * width)))
            _compute(kind(b, width), first, vectors, rows_of, taps, channels, *others)
        done = b.add(done, b.mul(pieces, LONG(vectors * width)))


def _compute(
    v: Vectors,
    first: Any,
    vectors: int,
    rows_of: Callable[[Any], list[Any]],
    taps: Any,
    channels: Any,
    weights: Any,
    bias: Any,
    low: Any,
    high: Any,
    out: Any,
    step: Any,
) -> None:
    """Some channels of the block, from channel `first` on."""
    b = v.builder
    parts = [b.add(first, LONG(v.width * i)) for i in range(vectors)]

    def of_tap(tap: Any, sums: list[Any]) -> list[Any]:
        begin = b.mul(tap, channels)
        own = [v.load(weights, b.add(begin, part)) for part in parts]
        rows = rows_of(tap)
        reads = [(v.load_row(row, part), w) for row in rows for part, w in zip(parts, own, strict=True)]
        return [v.fused(x, w, total) for (x, w), total in zip(reads, sums, strict=True)]

    sums = loop(b, taps, [v.zero()] * (ROWS * vectors), of_tap)
    for r in range(ROWS):
        row = b.mul(step, LONG(r))
        for i, part in enumerate(parts):
            value = b.fadd(sums[r * vectors + i], v.load(bias, part))
            v.store_row(v.limited(value, low, high), out, b.add(row, part))
