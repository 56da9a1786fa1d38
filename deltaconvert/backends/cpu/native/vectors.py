"""What our kernels are written in: LLVM's instructions on vectors of floats, and loops that keep values in registers.

It imports numba's compiler, so it is imported where a kernel is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config

LONG, FLOAT = ir.IntType(64), ir.FloatType()
FEATURES = dict(binding.get_host_cpu_features())
ON_ARM = binding.get_default_triple().startswith(("aarch64", "arm64"))
FUSES = ON_ARM or FEATURES.get("fma", False)  # without it LLVM would call the C library for each product
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
# Pixels of a block: two vectors of sums for each fit the registers, of which some processors have 32.
ROWS = 12 if ON_ARM or FEATURES.get("avx512f") else 6
# The processor multiplies pairs of bfloat16. LLVM before 16 gave the instruction other arguments, and what numba is
# told to compile for by hand need not be this processor.
TOLD_BY_HAND = bool(getattr(config, "CPU_NAME", None))  # NUMBA_CPU_NAME
_KNOWN = binding.llvm_version_info[0] >= 16 and not TOLD_BY_HAND
MULTIPLIES_PAIRS = bool(FEATURES.get("avx512bf16") and _KNOWN)
# AMD's do so in one cycle, with twice as many products as of floats. Intel's take two where two vectors of floats go in
# one (a Xeon of 2023: 36 GMAC/s a core by pairs, 68 by floats), so rows are widened there.
WIDENS = not binding.get_host_cpu_name().startswith("znver")


class Vectors:
    """Writes instructions on vectors of `width` floats. What is in memory is an address and a place in floats."""

    def __init__(self, builder: Any, width: int):
        self.builder, self.width, self.kind = builder, width, ir.VectorType(FLOAT, width)

    def zero(self) -> Any:
        return ir.Constant(self.kind, [0.0] * self.width)

    def load(self, address: Any, place: Any) -> Any:
        return self.builder.load(self._at(address, place), align=4)

    def store(self, value: Any, address: Any, place: Any) -> None:
        self.builder.store(value, self._at(address, place), align=4)

    def store_one(self, value: Any, address: Any, place: Any) -> None:
        self.builder.store(value, self._float(address, place))

    def store_past_the_cache(self, value: Any, address: Any, place: Any) -> None:
        """The lines of memory are not read first, and do not stay in the cache. The address is one of whole vectors."""
        self._go_past(self.builder.store(value, self._at(address, place), align=4 * self.width))

    def prefetch(self, address: Any, *, write: bool) -> None:
        """Have the line of memory at an address in the cache soon."""
        b, word, byte = self.builder, ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetch = b.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        b.call(fetch, [b.inttoptr(address, byte), word(int(write)), word(3), word(1)])

    def spread(self, value: Any) -> Any:
        """One float in all places."""
        nothing = ir.Constant(self.kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, nothing, mask)

    def load_spread(self, address: Any, place: Any) -> Any:
        return self.spread(self.builder.load(self._float(address, place)))

    def added(self, x: Any, y: Any, total: Any) -> Any:
        """total + x * y, of what products take."""
        return self.fused(x, y, total)

    def load_factors(self, address: Any, place: Any) -> Any:
        """What products take of a map, from place `place` of such factors on."""
        return self.load(address, place)

    def joined(self, value: Any) -> Any:
        """The sum of all places: of one half and the other, and so on."""
        b, half = self.builder, self.width
        while half > 1:
            half //= 2
            parts = ([place + first for place in range(half)] for first in (0, half))
            masks = (ir.Constant(ir.VectorType(ir.IntType(32), half), part) for part in parts)
            value = b.fadd(
                *(b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), m) for m in masks)
            )
        return b.extract_element(value, ir.IntType(32)(0))

    def fused(self, x: Any, y: Any, total: Any) -> Any:
        """total + x * y of floats, rounded once where the processor can."""
        if not FUSES:
            return self.builder.fadd(self.builder.fmul(x, y), total)
        kind = ir.FunctionType(self.kind, [self.kind] * 3)
        fma = self.builder.module.declare_intrinsic(f"llvm.fma.v{self.width}f32", fnty=kind)
        return self.builder.call(fma, [x, y, total])

    def limited(self, value: Any, low: Any, high: Any) -> Any:
        """To low .. high; NaN stays NaN."""
        for sign, limit in (("<", self.spread(low)), (">", self.spread(high))):
            value = self.builder.select(self.builder.fcmp_ordered(sign, value, limit), limit, value)
        return value

    def load_row(self, address: Any, place: Any) -> Any:
        """Numbers of a map. What is in memory is an address and a place in such numbers."""
        return self.load(address, place)

    def store_row(self, value: Any, address: Any, place: Any, *, past_the_cache: bool = False) -> None:
        store = self.store_past_the_cache if past_the_cache else self.store
        store(value, address, place)

    def _go_past(self, stored: Any) -> None:
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))

    def _at(self, address: Any, place: Any) -> Any:
        return self.builder.bitcast(self._float(address, place), self.kind.as_pointer())

    def _float(self, address: Any, place: Any) -> Any:
        return self.builder.gep(self.builder.inttoptr(address, FLOAT.as_pointer()), [place])


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class Widened(Vectors):
    """The same where maps are of bfloat16. What is multiplied are floats: rows that have been widened (widening.py)."""

    def load_factors(self, address: Any, place: Any) -> Any:
        return self.load_row(address, place)

    def load_row(self, address: Any, place: Any) -> Any:
        b, words = self.builder, ir.VectorType(ir.IntType(32), self.width)
        halves = b.load(self._row(address, place, ir.IntType(16)), align=2)
        upper = b.shl(b.zext(halves, words), ir.Constant(words, [16] * self.width))
        return b.bitcast(upper, self.kind)

    def store_row(self, value: Any, address: Any, place: Any, *, past_the_cache: bool = False) -> None:
        b, narrow = self.builder, ir.VectorType(_BFloat(), self.width)
        name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * self.width}"
        rounds = b.module.declare_intrinsic(name, fnty=ir.FunctionType(narrow, [self.kind]))
        to, align = self._row(address, place, _BFloat()), 2 * self.width if past_the_cache else 2
        stored = b.store(b.call(rounds, [value]), to, align=align)
        if past_the_cache:
            self._go_past(stored)

    def _row(self, address: Any, place: Any, number: Any) -> Any:
        b = self.builder
        at = b.gep(b.inttoptr(address, ir.IntType(16).as_pointer()), [place])
        return b.bitcast(at, ir.VectorType(number, self.width).as_pointer())


class Pairs(Widened):
    """The same, and a float of what is multiplied is a pair of bfloat16, side by side, as they lie in maps.

    Sums stay floats. Each adds two products, and all are rounded as the processor does, with numbers below 1e-38 as 0.
    """

    def added(self, x: Any, y: Any, total: Any) -> Any:
        pairs = ir.VectorType(_BFloat(), 2 * self.width)
        kind = ir.FunctionType(self.kind, [self.kind, pairs, pairs])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.width}"
        multiply = self.builder.module.declare_intrinsic(name, fnty=kind)
        return self.builder.call(multiply, [total, *(self.builder.bitcast(v, pairs) for v in (x, y))])

    def load_factors(self, address: Any, place: Any) -> Any:
        return self.load(address, place)

    def load_spread_half(self, address: Any, place: Any) -> Any:
        """The bfloat16 in front of which `place` pairs lie, beside 0, in all places: a line may end behind it."""
        b, at = self.builder, self._float(address, place)
        half = b.load(b.bitcast(at, ir.IntType(16).as_pointer()), align=2)
        return self.spread(b.bitcast(b.shl(b.zext(half, ir.IntType(32)), ir.IntType(32)(16)), FLOAT))


# Where pairs do not compile nothing is made of them.
Narrow: type[Vectors] = (Widened if WIDENS else Pairs) if MULTIPLIES_PAIRS else Vectors


def addresses(builder: Any, table: Any, first: Any, count: int) -> list[Any]:
    """`count` integers of a table, from number `first` on."""
    base = builder.gep(builder.inttoptr(table, LONG.as_pointer()), [first])
    return [builder.load(builder.gep(base, [LONG(r)])) for r in range(count)]


def loop(
    builder: Any, turns: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """What `carried` becomes by body(turn, carried), `turns` times, none included."""
    before = builder.block
    inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_unsigned("!=", turns, LONG(0)), inside, after)
    builder.position_at_end(inside)
    turn, values = builder.phi(LONG), [builder.phi(value.type) for value in carried]
    found = body(turn, values)
    end, following = builder.block, builder.add(turn, LONG(1))
    builder.cbranch(builder.icmp_unsigned("<", following, turns), inside, after)
    for phi, first, last in zip([turn, *values], [LONG(0), *carried], [following, *found], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, end)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in carried]
    for phi, first, last in zip(results, carried, found, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, end)
    return results
