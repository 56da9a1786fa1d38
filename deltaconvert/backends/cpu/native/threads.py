"""Finds torch's OpenMP library, so that our loops run on torch's threads.

A second pool of threads would compete with torch's for the cores, and torch's threads are awake: an empty region takes
2 to 3 us on two Zen 3 cores, 5 after a convolution, 20 to 40 after milliseconds of work on one thread."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch


class Pool:
    """address: of GOMP_parallel, which GCC's and Clang's OpenMP have; 0 if torch has other threads, or none."""

    def __init__(self) -> None:
        self.address = _address()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._lost)

    def _lost(self) -> None:
        """Called in a forked process, which has none of its parent's threads: OpenMP would wait for them forever."""
        self.address = 0

    @property
    def count(self) -> int:
        return torch.get_num_threads() if self.address else 1


@cache
def pool() -> Pool:
    return Pool()


def _address() -> int:
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return 0
    for path in _libraries():
        try:
            found = ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p)
        except (OSError, TypeError, AttributeError):  # no such library, or none of its dependencies has it
            continue
        return found.value or 0
    return 0


def _libraries() -> list[str | None]:
    """Where torch itself finds the library: on Linux first among the global symbols, then in its dependencies."""
    folder = Path(torch.__file__).parent / "lib"
    own: list[str | None] = [str(path) for path in sorted(folder.glob("libtorch_cpu.*"))]
    return [None, *own] if sys.platform == "linux" else own
