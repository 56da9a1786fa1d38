"""The threads of torch: where its OpenMP library is, so that our loops run on the same ones.

A second pool would spin against torch's for the cores. What runs on torch's finds them awake: an empty region takes 2
to 3 us on two Zen 3 cores, 5 behind a convolution, 20 to 40 after milliseconds of work on one thread.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch


class Pool:
    """address: of GOMP_parallel, as GCC's and Clang's OpenMP have it; 0 where torch has other threads, or none."""

    def __init__(self) -> None:
        self.address = _address()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._lost)

    def _lost(self) -> None:
        """A forked process has none of its parent's threads, and OpenMP would wait for them forever."""
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
    """Where torch's own calls find it: on Linux first in what all libraries share, then in its dependencies."""
    folder = Path(torch.__file__).parent / "lib"
    own: list[str | None] = [str(path) for path in sorted(folder.glob("libtorch_cpu.*"))]
    return [None, *own] if sys.platform == "linux" else own
