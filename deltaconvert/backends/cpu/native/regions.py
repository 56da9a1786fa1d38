"""A parallel region of OpenMP in numba's machine code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT, LONG, POINTER = ir.IntType(32), ir.IntType(64), cgutils.voidptr_t
NUMBERS = (types.intp,) * 4  # pool, threads, items, grain


@intrinsic
def share_out(typing: Any, loop: Any, pool: Any, threads: Any, items: Any, grain: Any, arguments: Any) -> Any:
    """Call loop(thread, first, last, *arguments) for all items, `grain` at a time, each time on a free thread.

    pool: the address of GOMP_parallel; 0 for this thread alone. In C:

        struct { long threads, next, items, grain; ...arguments; } call = {0, 0, items, grain, ...};
        void region(call) {
            long thread = call.threads++;
            while ((first = call.next, call.next += call.grain, first) < call.items)
                loop(thread, first, min(first + call.grain, call.items), ...call.arguments);
        }
        GOMP_parallel(region, &call, threads, 0);

    with atomic additions. Exceptions of the loop are lost: nothing could catch them there.
    """
    kinds = (types.intp, types.intp, types.intp, *arguments.types)
    loop.get_call_type(typing, kinds, {})
    compiled = loop.dispatcher.overloads[kinds]

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, pool, threads, items, grain, given = values
        zero = ir.Constant(LONG, 0)
        fields = [zero, zero, items, grain, *cgutils.unpack_tuple(builder, given)]
        layout = ir.LiteralStructType([field.type for field in fields])
        call = cgutils.alloca_once(builder, layout)
        for place, field in enumerate(fields):
            builder.store(field, cgutils.gep_inbounds(builder, call, 0, place))
        context.active_code_library.add_linking_library(compiled.library)
        region = _region(context, builder.module, layout, compiled.fndesc)
        kind = ir.FunctionType(ir.VoidType(), [region.type, POINTER, INT, INT])
        start, argument = builder.inttoptr(pool, kind.as_pointer()), builder.bitcast(call, POINTER)
        with builder.if_else(cgutils.is_null(builder, pool)) as (alone, together):
            with alone:
                builder.call(region, [argument])
            with together:
                builder.call(start, [region, argument, builder.trunc(threads, INT), ir.Constant(INT, 0)])
        return context.get_dummy_value()

    return types.void(loop, *NUMBERS, arguments), code


def _region(context: Any, module: Any, layout: Any, loop: Any) -> Any:
    """The function `region` of share_out."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER])
    region = ir.Function(module, kind, module.get_unique_name("region"))
    region.linkage = "internal"
    builder = ir.IRBuilder(region.append_basic_block("entry"))
    call = builder.bitcast(region.args[0], layout.as_pointer())
    threads, following, *places = (
        cgutils.gep_inbounds(builder, call, 0, place) for place in range(len(layout.elements))
    )
    items, grain, *arguments = map(builder.load, places)
    thread = builder.atomic_rmw("add", threads, ir.Constant(LONG, 1), "monotonic")
    again, work, done = (region.append_basic_block(name) for name in ("again", "work", "done"))
    builder.branch(again)
    builder.position_at_end(again)
    first = builder.atomic_rmw("add", following, grain, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, items), work, done)
    builder.position_at_end(work)
    after = builder.add(first, grain)
    last = builder.select(builder.icmp_signed("<", after, items), after, items)
    function = context.declare_function(module, loop)
    context.call_conv.call_function(
        builder, function, loop.restype, loop.argtypes, [thread, first, last, *arguments]
    )
    builder.branch(again)
    builder.position_at_end(done)
    builder.ret_void()
    return region
