"""The inner loop of a depthwise convolution as vector instructions, which numba's own loops do not become.

Some channels of a block of pixels stay in registers from the first tap to the last:

    for tap:    sum[row, vector] += row's input[tap][vector] * weights[tap][vector]

What is read is given by the addresses of rows, tap after tap, so a block can be any pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LONG, FLOAT = ir.IntType(64), ir.FloatType()
FEATURES = dict(binding.get_host_cpu_features())
ON_ARM = binding.get_default_triple().startswith(("aarch64", "arm64"))
FUSES = ON_ARM or FEATURES.get("fma", False)  # without it LLVM would call the C library for each product
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
ROWS = (
    12 if ON_ARM or FEATURES.get("avx512f") else 6
)  # pixels of a block: two vectors for each fit the registers


@intrinsic
def sums(
    typing: Any,
    table: Any,
    taps: Any,
    channels: Any,
    weights: Any,
    bias: Any,
    low: Any,
    high: Any,
    out: Any,
    step: Any,
) -> Any:
    """Sums over taps of ROWS pixels, plus bias (channels), limited to low .. high; NaN stays NaN. Addresses all.

    table: int64 (taps, ROWS), of rows of `channels` floats; weights: (taps, channels). The rows of `out` are `step`
    floats apart.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = _Block(builder, *arguments)
        done = LONG(0)
        for vectors, width in ((2, LANES), (1, LANES), (1, 4), (1, 1)):
            pieces = builder.udiv(builder.sub(block.channels, done), LONG(vectors * width))
            with cgutils.for_range(builder, pieces, intp=LONG) as piece:
                block.compute(
                    builder.add(done, builder.mul(piece.index, LONG(vectors * width))), vectors, width
                )
            done = builder.add(done, builder.mul(pieces, LONG(vectors * width)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, *[types.float32] * 2, types.intp, types.intp), code


class _Block:
    """Writes the instructions for some channels of the block."""

    def __init__(self, builder: Any, *arguments: Any):
        self.builder = builder
        self.table, self.taps, self.channels, self.weights, self.bias, *limits, self.out, self.step = (
            arguments
        )
        self.low, self.high = limits

    def compute(self, first: Any, vectors: int, width: int) -> None:
        b, kind = self.builder, ir.VectorType(FLOAT, width)
        parts = [b.add(first, LONG(width * v)) for v in range(vectors)]
        zero = ir.Constant(kind, [0.0] * width)

        def of_tap(tap: Any, sums: list[Any]) -> list[Any]:
            begin = b.mul(tap, self.channels)
            weights = [self._load(self.weights, b.add(begin, part), kind) for part in parts]
            rows = self._addresses(b.mul(tap, LONG(ROWS)))
            reads = [
                (self._load(row, part, kind), w)
                for row in rows
                for part, w in zip(parts, weights, strict=True)
            ]
            return [self._added(x, w, total) for (x, w), total in zip(reads, sums, strict=True)]

        sums = loop(b, self.taps, [zero] * (ROWS * vectors), of_tap)
        for r in range(ROWS):
            row = b.mul(self.step, LONG(r))
            for v, part in enumerate(parts):
                value = b.fadd(sums[r * vectors + v], self._load(self.bias, part, kind))
                b.store(self._limited(value, width), self._at(self.out, b.add(row, part), kind), align=4)

    def _addresses(self, first: Any) -> list[Any]:
        base = self.builder.gep(self.builder.inttoptr(self.table, LONG.as_pointer()), [first])
        return [self.builder.load(self.builder.gep(base, [LONG(r)])) for r in range(ROWS)]

    def _at(self, address: Any, index: Any, kind: Any) -> Any:
        base = self.builder.inttoptr(address, FLOAT.as_pointer())
        return self.builder.bitcast(self.builder.gep(base, [index]), kind.as_pointer())

    def _load(self, address: Any, index: Any, kind: Any) -> Any:
        return self.builder.load(self._at(address, index, kind), align=4)

    def _added(self, x: Any, y: Any, total: Any) -> Any:
        if not FUSES:
            return self.builder.fadd(self.builder.fmul(x, y), total)
        name, kind = f"llvm.fma.v{x.type.count}f32", ir.FunctionType(x.type, [x.type] * 3)
        return self.builder.call(self.builder.module.declare_intrinsic(name, fnty=kind), [x, y, total])

    def _limited(self, value: Any, width: int) -> Any:
        for sign, limit in (("<", self.low), (">", self.high)):
            every = self._spread(limit, width)
            value = self.builder.select(self.builder.fcmp_ordered(sign, value, every), every, value)
        return value

    def _spread(self, value: Any, width: int) -> Any:
        nothing = ir.Constant(ir.VectorType(FLOAT, width), ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        return self.builder.shuffle_vector(first, nothing, mask)


def loop(
    builder: Any, turns: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """What `carried` becomes by body(turn, carried), `turns` times and at least once."""
    before, inside = builder.block, builder.append_basic_block("inside")
    builder.branch(inside)
    builder.position_at_end(inside)
    turn, values = builder.phi(LONG), [builder.phi(value.type) for value in carried]
    found = body(turn, values)
    following = builder.add(turn, LONG(1))
    for phi, first, last in zip([turn, *values], [LONG(0), *carried], [following, *found], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", following, turns), inside, after)
    builder.position_at_end(after)
    return found
