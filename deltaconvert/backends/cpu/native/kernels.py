"""The inner loop of a convolution, in LLVM's own words: numba compiles it for the processor at hand.

A block of pixels times a panel of channels stays in vector registers from the first tap to the last:

    for tap, for k:    sum[row, vector] += row's input[tap][k] * weights[tap][k][vector]

What is read is given by the addresses of rows, tap after tap, so a block can be any pixels. One pixel's sum has one
order, whatever pixels are beside it. Written for lists like that no library has it, and numba's own loops keep sums in
memory: 64 -> 64 channels, 3x3, on a Zen 3 core: 78 GFLOP/s, oneDNN on gathered rows 55.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.native.vectors import FLOAT, LANES, LONG, ROWS, Pairs, Vectors, addresses, loop


def product(
    vectors: int, kind: type[Vectors] = Vectors, *, past_the_cache: bool = False, first: bool = False
) -> Any:
    """numba intrinsic (table, ahead, taps, depth, odd, weights, bias, outs, column, adds, low, high, slope), addresses.

    table: int64 (taps, ROWS), of `depth` floats each; weights: (taps, depth, vectors * LANES); bias: (vectors * LANES).
    With kind=Pairs a float of these, but for the bias, is two bfloat16, and so are numbers that are added or written;
    where `odd` is 1 one more number is read behind the pairs, and weights have a line more for it: 0 beside its own.
    ahead: int64 (ROWS), rows that are read next, or again: they are asked for meanwhile. One Zen 4 core, 256 -> 64 in
    bfloat16 at 180x320: 14 ms without, 9 with it. Only with first=True are `odd` and `ahead` looked at: products whose
    rows are in the cache, 512 -> 512 with 3x3, are a tenth slower by it.
    outs, adds: int64 (ROWS), of rows that are written, and added before the activation; adds may be 0. `column` bytes
    are added to those. Values below 0 are multiplied by `slope`, then all are limited to low .. high. NaN stays NaN.

    What is added, and where the results go, is asked for before the sums: 256 -> 1024 with a skip takes 25 ms without
    that, 23 with it (one Zen 3 core, 45x80). past_the_cache: results go to memory, `outs` and panels begin at vectors.
    """
    parts = [LONG(LANES * i) for i in range(vectors)]

    def generate(b: Any, table: Any, ahead: Any, taps: Any, depth: Any, odd: Any, *others: Any) -> None:
        weights, bias, outs, column, adds, low, high, slope = others
        v = kind(b, LANES)

        def of_tap(tap: Any, sums: list[Any]) -> list[Any]:
            reads = addresses(b, table, b.mul(tap, LONG(ROWS)), ROWS)
            if not first:
                return _times(v, parts, reads, weights, b.mul(tap, depth), depth, sums)
            line = b.mul(tap, b.add(depth, odd))
            sums = _times(v, parts, reads, weights, line, depth, sums, ahead)
            return _times_last(v, parts, reads, weights, b.add(line, depth), depth, odd, sums)

        def places(table: Any) -> list[Any]:
            return [(row, part) for row in _rows(b, table, column) for part in parts]

        def ask_adds(turn: Any, nothing: list[Any]) -> list[Any]:
            _ask(v, _rows(b, adds, column), write=False)
            return nothing

        loop(b, b.zext(b.icmp_unsigned("!=", adds, LONG(0)), LONG), [], ask_adds)
        if not past_the_cache:
            _ask(v, _rows(b, outs, column), write=True)
        start = [v.load(bias, part) for part in parts]
        sums = loop(b, taps, start * ROWS, of_tap)
        sums = finished(v, sums, adds, lambda: places(adds), low, high, slope)
        for value, place in zip(sums, places(outs), strict=True):
            v.store_row(value, *place, past_the_cache=past_the_cache)

    @intrinsic
    def kernel(context, table, ahead, taps, depth, odd, weights, bias, outs, column, adds, low, high, slope):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            generate(builder, *args)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10, *[types.float32] * 3), code

    return kernel


def _rows(b: Any, table: Any, column: Any) -> list[Any]:
    """Addresses `column` bytes behind the rows of a block."""
    return [b.add(row, column) for row in addresses(b, table, LONG(0), ROWS)]


def _ask(v: Vectors, rows: list[Any], *, write: bool) -> None:
    for row in rows:
        v.prefetch(row, write=write)


def finished(
    v: Vectors,
    sums: list[Any],
    adds: Any,
    places: Callable[[], list[Any]],
    low: Any,
    high: Any,
    slope: Any,
) -> list[Any]:
    """Sums plus the numbers at places(), unless `adds` is 0; those below 0 times `slope`; limited to low .. high."""
    b = v.builder

    def added(turn: Any, sums: list[Any]) -> list[Any]:
        return [b.fadd(s, v.load_row(*place)) for s, place in zip(sums, places(), strict=True)]

    def below(turn: Any, sums: list[Any]) -> list[Any]:
        factor = v.spread(slope)
        return [b.select(b.fcmp_ordered("<", s, v.zero()), b.fmul(s, factor), s) for s in sums]

    sums = loop(b, b.zext(b.icmp_unsigned("!=", adds, LONG(0)), LONG), sums, added)
    sums = loop(b, b.zext(b.fcmp_unordered("!=", slope, FLOAT(1)), LONG), sums, below)
    return [v.limited(value, low, high) for value in sums]


@intrinsic
def matrix_product(
    typing: Any,
    rows: Any,
    step: Any,
    blocks: Any,
    depth: Any,
    weights: Any,
    out: Any,
    out_step: Any,
) -> Any:
    """Rows (blocks * ROWS, depth) x weights (depth, 2 * LANES) -> rows of `out`; steps from row to row are in bytes."""

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, step, blocks, depth, weights, out, out_step = arguments
        v, parts = Vectors(b, LANES), [LONG(0), LONG(LANES)]
        with cgutils.for_range(b, blocks, intp=LONG) as block:
            first = b.mul(block.index, LONG(ROWS))
            reads = [b.add(rows, b.mul(b.add(first, LONG(r)), step)) for r in range(ROWS)]
            sums = _times(v, parts, reads, weights, LONG(0), depth, [v.zero()] * (2 * ROWS))
            for r in range(ROWS):
                row = b.add(out, b.mul(b.add(first, LONG(r)), out_step))
                for part, value in zip(parts, sums[2 * r : 2 * r + 2], strict=True):
                    v.store(value, row, part)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), code


def _times(
    v: Vectors,
    parts: list[Any],
    reads: list[Any],
    weights: Any,
    first: Any,
    depth: Any,
    sums: list[Any],
    ahead: Any = None,
) -> list[Any]:
    """sums (rows, parts) + rows `reads` of `depth` floats x weights (depth, parts), from line `first` of those on.

    ahead: int64 (ROWS), rows that are read next, and asked for meanwhile.
    """
    b = v.builder

    def of_value(k: Any, sums: list[Any]) -> list[Any]:
        at = b.mul(b.add(first, k), LONG(len(parts) * LANES))
        return _plus(v, parts, weights, at, (v.load_spread(read, k) for read in reads), sums)

    def of_four(turn: Any, sums: list[Any]) -> list[Any]:
        if ahead is not None:
            _ask_ahead(v, ahead, turn)
        for step in range(4):
            sums = of_value(b.add(b.mul(turn, LONG(4)), LONG(step)), sums)
        return sums

    fours = b.udiv(depth, LONG(4))
    sums = loop(b, fours, sums, of_four)
    done = b.mul(fours, LONG(4))
    return loop(b, b.sub(depth, done), sums, lambda k, sums: of_value(b.add(done, k), sums))


def _ask_ahead(v: Vectors, ahead: Any, turn: Any) -> None:
    """In four turns, which read a line of the cache of each row, that line of each of the rows `ahead`."""
    b = v.builder
    part = b.mul(b.and_(turn, LONG(3)), LONG(ROWS // 4))
    for row in addresses(b, ahead, part, ROWS // 4):
        v.prefetch(b.add(row, b.mul(turn, LONG(16))), write=False)


def _times_last(
    v: Vectors,
    parts: list[Any],
    reads: list[Any],
    weights: Any,
    line: Any,
    depth: Any,
    odd: Any,
    sums: list[Any],
) -> list[Any]:
    """Where `odd` is 1: as _times, of the one bfloat16 behind `depth` pairs, and line `line` of the weights."""
    if not isinstance(v, Pairs):
        return sums

    def of_last(turn: Any, sums: list[Any]) -> list[Any]:
        at = v.builder.mul(line, LONG(len(parts) * LANES))
        return _plus(v, parts, weights, at, (v.load_spread_half(read, depth) for read in reads), sums)

    return loop(v.builder, odd, sums, of_last)


def _plus(
    v: Vectors, parts: list[Any], weights: Any, at: Any, values: Iterable[Any], sums: list[Any]
) -> list[Any]:
    """sums (rows, parts) + values (rows) x weights (parts), from place `at` of those on.

    `values` are loaded where they are taken: registers have no room for those of all rows beside the sums.
    """
    own = [v.load(weights, v.builder.add(at, part)) for part in parts]
    totals, found = iter(sums), []
    for value in values:
        found += [v.added(value, w, next(totals)) for w in own]
    return found
