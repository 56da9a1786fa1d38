"""The inner loop of a convolution to a few channels: each is summed along what a pixel reads, vector by vector of it.

    for channel, for tap, for vector:    sum[row] += row's input[tap][vector] * weights[channel][tap][vector]

and the places of each sum are added up at last. A panel of kernels.py would have as few channels in use: 64 -> 1 with
3x3 has 576 products of vectors a pixel there, 36 here. What is read is given as there, and one pixel's sum has one
order, whatever pixels are beside it.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.native.kernels import finished
from deltaconvert.backends.cpu.native.vectors import LANES, LONG, ROWS, Vectors, addresses, loop


def sums_along(kind: type[Vectors] = Vectors) -> Any:
    """numba intrinsic (table, taps, depth, channels, weights, bias, outs, adds, low, high, slope), addresses all.

    As kernels.product; `depth` is one of whole vectors, of at most LANES `channels`. weights: (channels, taps, depth);
    bias: (LANES). Rows that are written or added have room for as many floats, and so many numbers.
    """

    @intrinsic
    def kernel(typing, table, taps, depth, channels, weights, bias, outs, adds, low, high, slope):  # type: ignore[no-untyped-def]
        def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            table, taps, depth, channels, weights, bias, outs, adds, low, high, slope = arguments
            v, rows = kind(b, LANES), addresses(b, outs, LONG(0), ROWS)
            with cgutils.for_range(b, channels, intp=LONG) as channel:
                own = b.mul(channel.index, b.mul(taps, depth))
                for row, total in zip(rows, _sums(v, table, taps, depth, weights, own), strict=True):
                    v.store_one(v.joined(total), row, channel.index)
            sums = [b.fadd(v.load(row, LONG(0)), v.load(bias, LONG(0))) for row in rows]

            def added() -> list[Any]:
                return [(row, LONG(0)) for row in addresses(b, adds, LONG(0), ROWS)]

            for value, row in zip(finished(v, sums, adds, added, low, high, slope), rows, strict=True):
                v.store_row(value, row, LONG(0))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8, *[types.float32] * 3), code

    return kernel


def _sums(v: Vectors, table: Any, taps: Any, depth: Any, weights: Any, own: Any) -> list[Any]:
    """A vector for each row, of one channel, whose weights begin at place `own`."""
    b = v.builder

    def of_tap(tap: Any, sums: list[Any]) -> list[Any]:
        reads, first = addresses(b, table, b.mul(tap, LONG(ROWS)), ROWS), b.add(own, b.mul(tap, depth))

        def of_piece(piece: Any, sums: list[Any]) -> list[Any]:
            at = b.mul(piece, LONG(LANES))
            weight = v.load(weights, b.add(first, at))
            rows = (v.load_factors(row, at) for row in reads)
            return [v.added(row, weight, total) for row, total in zip(rows, sums, strict=True)]

        return loop(b, b.udiv(depth, LONG(LANES)), sums, of_piece)

    return loop(b, taps, [v.zero()] * ROWS, of_tap)
