"""The inner loop of a convolution, in LLVM's own words: numba compiles it for the processor at hand.

A block of pixels times a panel of channels stays in vector registers from the first tap to the last:

    for tap, for k:    sum[row, vector] += row's input[tap][k] * weights[tap][k][vector]

What is read is given by the addresses of rows, tap after tap, so a block can be any pixels. One pixel's sum has one
order, whatever pixels are beside it. Written for lists like that no library has it, and numba's own loops keep sums in
memory: 64 -> 64 channels, 3x3, on a Zen 3 core: 78 GFLOP/s, oneDNN on gathered rows 55.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deltaconvert.backends.cpu.stencils import FUSES


def product(rows: int, vectors: int, width: int) -> Any:
    """numba intrinsic (table, taps, depth, weights, bias, outs, column, adds, low, high, slope), addresses all.

    table: int64 (taps, rows), of `depth` floats each; weights: (taps, depth, vectors * width); bias: (vectors * width).
    outs, adds: int64 (rows), of rows that are written, and added before the activation; adds may be 0. `column` bytes
    are added to those. Values below 0 are multiplied by `slope`, then all are limited to low .. high. NaN stays NaN.
    """
    i64, f32 = ir.IntType(64), ir.FloatType()
    vector = ir.VectorType(f32, width)

    def generate(b: ir.IRBuilder, args: Sequence[Any]) -> None:
        table, taps, depth, weights, bias, outs, column, adds, low, high, slope = args

        def load(address: Any, index: Any = None, kind: Any = vector) -> Any:
            """Of floats (or vectors that begin at float `index`)."""
            base = b.inttoptr(address, f32.as_pointer())
            at = base if index is None else b.gep(base, [index])
            return b.load(b.bitcast(at, kind.as_pointer()), align=4)

        def spread(value: Any) -> Any:
            nothing = ir.Constant(vector, ir.Undefined)
            first = b.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
            return b.shuffle_vector(
                first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            )

        def addresses(at: Any, first: Any) -> list[Any]:
            base = b.gep(b.inttoptr(at, i64.as_pointer()), [first])
            return [b.load(b.gep(base, [i64(r)])) for r in range(rows)]

        def added(x: Any, y: Any, z: Any) -> Any:
            if FUSES:
                kind = ir.FunctionType(vector, [vector] * 3)
                return b.call(b.module.declare_intrinsic(f"llvm.fma.v{width}f32", fnty=kind), [x, y, z])
            return b.fadd(b.fmul(x, y), z)

        def of_tap(tap: Any, sums: list[Any]) -> list[Any]:
            reads = addresses(table, b.mul(tap, i64(rows)))
            first = b.mul(tap, depth)

            def of_value(k: Any, sums: list[Any]) -> list[Any]:
                at = b.mul(b.add(first, k), i64(vectors * width))
                own = [load(weights, b.add(at, i64(v * width))) for v in range(vectors)]
                sums = list(sums)
                for r in range(rows):
                    value = spread(load(reads[r], k, f32))
                    for v in range(vectors):
                        sums[r * vectors + v] = added(value, own[v], sums[r * vectors + v])
                return sums

            def of_four(turn: Any, sums: list[Any]) -> list[Any]:
                for step in range(4):
                    sums = of_value(b.add(b.mul(turn, i64(4)), i64(step)), sums)
                return sums

            fours = b.udiv(depth, i64(4))
            sums = _loop(b, fours, sums, of_four)
            done = b.mul(fours, i64(4))
            return _loop(b, b.sub(depth, done), sums, lambda k, sums: of_value(b.add(done, k), sums))

        def places(at: Any, first: Any) -> list[Any]:
            return [
                b.add(row, b.add(column, i64(4 * v * width)))
                for row in addresses(at, first)
                for v in range(vectors)
            ]

        def of_adds(turn: Any, sums: list[Any]) -> list[Any]:
            return [b.fadd(s, load(at)) for s, at in zip(sums, places(adds, turn), strict=True)]

        def below(turn: Any, sums: list[Any]) -> list[Any]:
            zero, factor = spread(f32(0)), spread(slope)
            return [b.select(b.fcmp_ordered("<", s, zero), b.fmul(s, factor), s) for s in sums]

        start = [load(bias, i64(v * width)) for v in range(vectors)]
        sums = _loop(b, taps, start * rows, of_tap)
        sums = _loop(b, b.zext(b.icmp_unsigned("!=", adds, i64(0)), i64), sums, of_adds)
        sums = _loop(b, b.zext(b.fcmp_unordered("!=", slope, f32(1)), i64), sums, below)
        lowest, highest = spread(low), spread(high)
        for value, at in zip(sums, places(outs, i64(0)), strict=True):
            value = b.select(b.fcmp_ordered("<", value, lowest), lowest, value)
            value = b.select(b.fcmp_ordered(">", value, highest), highest, value)
            b.store(value, b.inttoptr(at, vector.as_pointer()), align=4)

    @intrinsic
    def kernel(context, table, taps, depth, weights, bias, outs, column, adds, low, high, slope):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            generate(builder, args)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8, *[types.float32] * 3), code

    return kernel


def _loop(b: Any, turns: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """What `carried` becomes by body(turn, carried), so many times, none included."""
    i64 = ir.IntType(64)
    before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.cbranch(b.icmp_unsigned("!=", turns, i64(0)), inside, after)
    b.position_at_end(inside)
    turn, values = b.phi(i64), [b.phi(value.type) for value in carried]
    found = body(turn, values)
    end, following = b.block, b.add(turn, i64(1))
    b.cbranch(b.icmp_unsigned("<", following, turns), inside, after)
    b.position_at_end(after)
    results = [b.phi(value.type) for value in carried]
    turn.add_incoming(i64(0), before)
    turn.add_incoming(following, end)
    for value, now, first, last in zip(values, results, carried, found, strict=True):
        for phi, origin in ((value, before), (now, before)):
            phi.add_incoming(first, origin)
        value.add_incoming(last, end)
        now.add_incoming(last, end)
    return results
