"""The cuda backend without a GPU: its kernels compiled by g++, its frames played one launch after the other.

Slow, and blind to races; but masks, lists, the order of launches and every parameter are those of the GPU. Tensor cores
there are none: convolutions run in kernels/conv.cu.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deltaconvert.backends import cuda

HERE = Path(__file__).parent
GXX = shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]


@cache
def library(source: Path, *defines: str) -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "library.so"
        command = [str(GXX), *FLAGS, *defines, "-shared", "-fPIC", str(source), "-o", str(out)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(out))


class Kernel:
    def __init__(self, source: str, name: str, macros: dict[str, Any], shared_bytes: int = 0):
        self.name = name
        defines = [f"-D{key}={text}" for key, text in sorted({**macros, "NAME": name}.items())]
        quiet = [
            "-Wno-parentheses",
            "-Wno-unused-function",
            "-Wno-unused-variable",
        ]  # FINISH is the tests' text
        path = f'-DSOURCE="{HERE.parents[1] / "kernels" / source}"'
        self._run = library(HERE / "kernel_on_cpu.cpp", *quiet, path, *defines).run

    def __call__(self, grid: tuple[int, ...], block: int, *args: Any, **options: Any) -> None:
        memory = [np.uint64(arg.data_ptr()) if isinstance(arg, Tensor) else arg for arg in args]
        held = [np.array([value]) for value in memory]
        addresses = np.array([value.ctypes.data for value in held], dtype=np.uint64)
        x, y = (*grid, 1)[:2]
        self._run(x, y, min(block, 64), ctypes.c_void_p(addresses.ctypes.data))


class Recording:
    def __init__(self, device: torch.device, start: Any, join: Any, finish: Any):
        self._start, self._finish, self.outside = start, finish, {}

    def play(self, steps: Any, frame: Any) -> None:
        self._start()
        for step in steps:
            step(frame)
        self._finish()


def without_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """For the time of a test, backend="cuda" runs on the CPU."""
    properties = SimpleNamespace(multi_processor_count=1, major=7, shared_memory_per_block_optin=60 << 10)
    patch.setattr(cuda, "why_not", lambda device: None)
    patch.setattr(cuda.launches, "Kernel", Kernel)
    patch.setattr(cuda, "Recording", Recording)
    for module in (cuda, cuda.edges, cuda.steps):
        patch.setattr(module, "THREADS", 64)
    patch.setattr(cuda.means, "on_current_stream", lambda device: contextlib.nullcontext())
    patch.setattr(cuda.Backend, "aside", lambda backend: contextlib.nullcontext())
    patch.setattr(cuda.Backend, "mark", lambda backend: 0)
    patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
