"""The cuda backend without a GPU: its kernels compiled by g++, its frames played one launch after the other.

This is slow and does not find races; but masks, lists, the order of launches and every parameter are those of a GPU.
There are no tensor cores: convolutions run in kernels/conv.cu.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
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
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Winvalid-pch"]
# Macros are the tests' text, and not all of it is read everywhere.
FLAGS += ["-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-parentheses", "-Wno-unused-function"]
FLAGS += ["-Wno-unused-variable"]
THREADS = 64  # of a block at most: each is a thread of the processor


@cache
def headers() -> TemporaryDirectory[str]:
    """The standard headers of cuda_on_cpu.h, read once: they are most of what compiling a kernel takes."""
    folder = TemporaryDirectory()
    file = Path(folder.name) / "standard.h"
    file.write_text("\n".join(re.findall(r"#include <.*>", (HERE / "cuda_on_cpu.h").read_text())) + "\n")
    subprocess.run([str(GXX), *FLAGS, "-x", "c++-header", str(file), "-o", f"{file}.gch"], check=True)
    return folder


@cache
def library(kernel: str) -> ctypes.CDLL:
    """kernel: its macros, and what is compiled with them."""
    with TemporaryDirectory() as folder:
        source, out = Path(folder) / "kernel.cpp", Path(folder) / "library.so"
        source.write_text(kernel)
        read = ["-include", f"{headers().name}/standard.h"]  # macros come behind it, or it could not be used
        subprocess.run([str(GXX), *FLAGS, *read, "-shared", str(source), "-o", str(out)], check=True)
        return ctypes.CDLL(str(out))


class Kernel:
    def __init__(self, source: str, name: str, macros: dict[str, Any], shared_bytes: int = 0):
        self.name = name
        if source in ("mean.cu", "depthwise.cu"):  # they go by the threads that they were compiled for
            macros = {"THREADS": THREADS, **macros}
        source = f'"{HERE.parents[1] / "kernels" / source}"'
        texts = sorted({**macros, "NAME": name, "SOURCE": source}.items())
        defined = "".join(f"#define {key} {' '.join(str(text).split())}\n" for key, text in texts)
        self._run = library(f'{defined}#include "{HERE / "kernel_on_cpu.cpp"}"\n').run

    def blocks_at_once(self, block: int) -> None:
        """Nobody knows."""

    def __call__(self, grid: tuple[int, ...], block: int, *args: Any, **options: Any) -> None:
        memory = [np.uint64(arg.data_ptr()) if isinstance(arg, Tensor) else arg for arg in args]
        held = [np.array([value]) for value in memory]
        addresses = np.array([value.ctypes.data for value in held], dtype=np.uint64)
        x, y, z = (*grid, 1, 1)[:3]
        self._run(x, y, z, min(block, THREADS), ctypes.c_void_p(addresses.ctypes.data))


class Recording:
    def __init__(self, device: torch.device, backend: Any):
        self._backend, self.outside, self.still = backend, {}, None

    def play(self, steps: Any, frame: Any) -> None:
        inputs = [value for value in frame.values if value is not None]
        self.addresses = cuda.recording.Addresses(inputs, inputs[0].device)
        self._backend.start()
        for step in steps:
            step(frame)
        self._backend.finish()


def edge_of(values: Tensor) -> SimpleNamespace:
    """What a convolution reads of an Edge: N C H W whose pixels lie in memory as the kernels find them."""
    n, channels, height, width = values.shape
    pitch = cuda.pitch_of(channels, values.dtype)
    memory = torch.zeros(n, height, width, pitch, dtype=values.dtype)
    memory[..., :channels] = values.permute(0, 2, 3, 1)
    return SimpleNamespace(values=memory[..., :channels].permute(0, 3, 1, 2), pitch=pitch, memory=memory)


def without_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """For the time of a test, backend="cuda" runs on the CPU."""
    properties = SimpleNamespace(multi_processor_count=1, major=7, shared_memory_per_block_optin=60 << 10)
    patch.setattr(cuda, "why_not", lambda device: None)
    patch.setattr(cuda.launches, "Kernel", Kernel)
    patch.setattr(cuda, "Recording", Recording)
    for module in (cuda, cuda.edges, cuda.gates, cuda.ceilings, cuda.steps):
        patch.setattr(module, "THREADS", THREADS)
    patch.setattr(cuda.ceilings, "CHOOSERS", THREADS)
    patch.setattr(cuda.means, "on_current_stream", lambda device: contextlib.nullcontext())
    patch.setattr(cuda.Backend, "aside", lambda backend: contextlib.nullcontext())
    patch.setattr(cuda.Backend, "mark", lambda backend: 0)
    patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
