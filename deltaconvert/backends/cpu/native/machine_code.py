"""Loops compiled by numba, where it is installed (the extra "cpu"): on one thread, or by shares on torch's.

Numba compiles a loop in a second or two when it is first called, and keeps the result on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

from deltaconvert.backends.cpu.native.threads import pool

FOUND = find_spec("numba") is not None
FOLDER = Path(__file__).parent
Loop = Callable[..., Any]


def compiled(loop: Loop) -> Loop:
    """The loop as machine code, compiled at its first call, because importing numba takes time and memory."""
    machine_code = cache(lambda: _compile(loop))
    return lambda *arguments: machine_code()(*arguments)


def shared(loop: Loop) -> Loop:
    """As `compiled`, for a loop(thread, first, last, ...) that does items first to last of its work; it must not raise.

    The result is called as loop(items, grain, ...): torch's threads take `grain` items at a time, whichever is free.
    The result of an item must not depend on other items, and no two may write to the same place. `thread`, which is
    below torch.get_num_threads(), tells scratch memory apart."""
    machine_code = cache(lambda: _compile(_in_shares(loop)))

    def call(items: int, grain: int, *arguments: Any) -> None:
        threads = pool()
        count = 1 if items <= grain else threads.count
        machine_code()(threads.address if count > 1 else 0, count, items, grain, *arguments)

    return call


def _compile(loop: Loop) -> Loop:
    """Compile with contraction: a product and a sum may be rounded once, as oneDNN does."""
    from numba import njit

    loop.__qualname__ += f"_{digest(FOLDER)}"
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(loop)
    except RuntimeError:  # there is no folder for it to write to
        return njit(**options)(loop)


@cache
def digest(folder: Path) -> str:
    """A digest of the sources in this folder. numba keeps a loop by its name and the age of its file, but it calls
    others."""
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]


def _in_shares(loop: Loop) -> Loop:
    """A function that does all items of a loop, with the loop's name, by which numba keeps it on disk."""
    from deltaconvert.backends.cpu.native.regions import share_out

    code = _all_items.__code__.replace(
        co_filename=loop.__code__.co_filename, co_firstlineno=loop.__code__.co_firstlineno
    )
    name = f"{loop.__qualname__}_in_shares"
    function = FunctionType(code, {"share_out": share_out, "loop": _compile(loop)}, loop.__name__)
    function.__qualname__, function.__module__ = name, loop.__module__
    return function


def _all_items(pool: int, threads: int, items: int, grain: int, *arguments: Any) -> None:
    share_out(loop, pool, threads, items, grain, arguments)  # type: ignore[name-defined]  # noqa: F821
