"""The small sums around the products of a Winograd convolution F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308).

Four pixels in a square, of which each reads 3x3, read 4x4 together:

    out = A' [ (G g G') * (B' d B) ] A        d: 4x4 read, g: 3x3 weights, out: 2x2, * number by number

which are 16 products for each pair of channels, where the definition has 36. Written out, the sum of an output contains
only values of its own 3x3 window: others are not cancelled, they never appear. So a pixel's bits depend on its own
window alone, whatever NaN lies beside it.

It imports numba's compiler, so it is imported where a kernel is made.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.native.vectors import LANES, LONG, Vectors, addresses

SQUARE = 4  # pixels of an output square
READ = 16  # pixels that it reads, and products


def _lines(values: list[Any]) -> list[list[Any]]:
    """Four by four."""
    return [values[4 * line : 4 * line + 4] for line in range(4)]


def _turned(lines: list[list[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*lines, strict=True)]


def spread_read(kind: type[Vectors] = Vectors) -> Any:
    """numba intrinsic (table, channels, out, apart): B' d B for all channels of one square.

    table: int64 (READ), rows. Number i goes to `out` + i * `apart` bytes. With kind=Widened rows are of bfloat16.
    """

    @intrinsic
    def kernel(typing, table, channels, out, apart):  # type: ignore[no-untyped-def]
        def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            table, channels, out, apart = arguments
            v = kind(b, LANES)
            reads = addresses(b, table, LONG(0), READ)
            writes = [b.add(out, b.mul(apart, LONG(i))) for i in range(READ)]

            def along(d: list[Any]) -> list[Any]:
                return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[1], d[3])]

            with cgutils.for_range(b, b.udiv(channels, LONG(LANES)), intp=LONG) as part:
                at = b.mul(part.index, LONG(LANES))
                read = _lines([v.load_row(row, at) for row in reads])
                made = [along(line) for line in _turned([along(column) for column in _turned(read)])]
                for value, row in zip([x for line in made for x in line], writes, strict=True):
                    v.store(value, row, at)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), code

    return kernel


def joined(kind: type[Vectors] = Vectors) -> Any:
    """numba intrinsic (products, apart, vectors, bias, outs, adds, column, low, high, slope).

    A' m A of so many vectors of channels of one square, plus bias, and what kernels.product does to a sum. Number i of
    m is row `products` + i * `apart` (bytes). outs, adds: int64 (SQUARE), of rows; adds may be 0. `column` bytes are
    added to those. Values below 0 are multiplied by `slope`, then all are limited to low .. high. With kind=Widened
    rows that are added or written are of bfloat16.
    """

    @intrinsic
    def kernel(typing, products, apart, vectors, bias, outs, adds, column, low, high, slope):  # type: ignore[no-untyped-def]
        def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _join(kind(b, LANES), *arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7, *[types.float32] * 3), code

    return kernel


def _join(
    v: Vectors,
    products: Any,
    apart: Any,
    vectors: Any,
    bias: Any,
    outs: Any,
    adds: Any,
    column: Any,
    low: Any,
    high: Any,
    slope: Any,
) -> None:
    b = v.builder
    reads = [b.add(products, b.mul(apart, LONG(i))) for i in range(READ)]
    writes = [b.add(row, column) for row in addresses(b, outs, LONG(0), SQUARE)]
    adding = b.icmp_unsigned("!=", adds, LONG(0))
    factor = v.spread(slope)

    def along(m: list[Any]) -> list[Any]:
        return [b.fadd(b.fadd(m[0], m[1]), m[2]), b.fsub(b.fsub(m[1], m[2]), m[3])]

    with cgutils.for_range(b, vectors, intp=LONG) as part:
        at = b.mul(part.index, LONG(LANES))
        read = _lines([v.load(row, at) for row in reads])
        halves = [along(column) for column in _turned(read)]
        made = [x for line in _turned(halves) for x in along(line)]
        own = v.load(bias, at)
        for i, (value, row) in enumerate(zip(made, writes, strict=True)):
            value = b.fadd(value, own)
            held = cgutils.alloca_once_value(b, value)
            with b.if_then(adding):
                (add,) = addresses(b, adds, LONG(i), 1)
                b.store(b.fadd(value, v.load_row(b.add(add, column), at)), held)
            value = b.load(held)
            below = b.fcmp_ordered("<", value, v.zero())
            value = b.select(below, b.fmul(value, factor), value)
            v.store_row(v.limited(value, low, high), row, at)
