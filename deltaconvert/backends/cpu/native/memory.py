"""What functions of compiled shares are made of: arrays at addresses.

It imports numba, so it is imported where a chain is made.
"""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types
from numba.extending import intrinsic


def _address(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), code


_pointer: Any = intrinsic(_address)
_array: Any = carray


def in_share(function: Any) -> Any:
    return njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)


@in_share
def ints(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.int64)


@in_share
def floats(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.float32)


@in_share
def shorts(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.int16)


@in_share
def words(address: Any, count: Any) -> Any:
    return _array(_pointer(address), (count,), types.int32)


@in_share
def copy(old: Any, new: Any, size: Any) -> None:
    """From one address to another; the size, in bytes, is one of whole bfloat16."""
    read, written = shorts(old, size // 2), shorts(new, size // 2)
    for i in range(len(read)):
        written[i] = read[i]


@in_share
def put_byte(address: Any, value: Any) -> None:
    _array(_pointer(address), (1,), types.uint8)[0] = value
