"""kernels/*.cu compiled at run time by CuPy and launched on torch's current stream. The only file that imports it."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.errors import InputError

TYPES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
}  # TYPE of kernels/common.cuh
_PACKAGE = Path(__file__).resolve().parents[2]
# In the wheel the sources lie inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "kernels", _PACKAGE.parent / "kernels")


def why_not(device: torch.device) -> str | None:
    """None if this backend can run on `device`, else the reason with its remedy."""
    if device.type != "cuda":
        return f"backend='cuda' needs a CUDA device, the example is on {device}: move both model and example there"
    major = (torch.version.cuda or "").split(".")[0]
    remedy = f"pip install cupy-cuda{major}x"
    if not major:
        return "this build of torch is not for CUDA: install one that is (pytorch.org/get-started/locally)"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {remedy}"
    try:
        version = _cupy().cuda.runtime.runtimeGetVersion() // 1000
    except Exception as error:  # CuPy for another CUDA fails in many ways, each its own exception
        return f"CuPy does not work here ({error}): pip uninstall it, then {remedy}"
    if str(version) != major:
        return f"CuPy is for CUDA {version} and torch for CUDA {major}: pip uninstall it, then {remedy}"
    return None


class Kernel:
    """One kernel of one source with its macros set. Arguments are checked: CuPy passes what it gets."""

    def __init__(self, source: str, name: str, macros: Mapping[str, Any], shared_bytes: int = 0):
        self._function = _compile(source, tuple(sorted((k, str(v)) for k, v in macros.items()))).get_function(
            name
        )
        self._shared_bytes = shared_bytes
        if shared_bytes > 48 << 10:
            self._function.max_dynamic_shared_size_bytes = shared_bytes

    def __call__(self, grid: tuple[int, ...], block: int, *args: Tensor | np.generic) -> None:
        """args: tensors go by their address, everything else is a numpy scalar of the parameter's type."""
        passed = []
        for arg in args:
            if isinstance(arg, Tensor):
                passed.append(np.uint64(arg.data_ptr()))
            elif isinstance(arg, np.generic):
                passed.append(arg)
            else:
                raise TypeError(f"a kernel's argument is a {type(arg).__name__}: {arg!r}")
        self._function(grid, (block,), tuple(passed), shared_mem=self._shared_bytes)


@contextmanager
def on_current_stream(device: torch.device) -> Iterator[None]:
    """Kernels launched inside go to the stream that torch uses."""
    cupy = _cupy()
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        handle = torch.cuda.current_stream().cuda_stream
        stream = (
            cupy.cuda.Stream.from_external(torch.cuda.current_stream())
            if hasattr(cupy.cuda.Stream, "from_external")
            else cupy.cuda.ExternalStream(handle, device.index)
        )
        with stream:
            yield


def source_of(name: str) -> str:
    """The text of a kernel with its own headers inlined: CuPy's disk cache does not see what an #include reads."""
    folder = next(folder for folder in _FOLDERS if (folder / "common.cuh").exists())
    seen: set[str] = set()

    def read(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        return re.sub(
            r'^#include "(.*)"$',
            lambda match: read(match[1]),
            (folder / file).read_text(),
            flags=re.MULTILINE,
        )

    return read(name)


@cache
def _compile(source: str, macros: tuple[tuple[str, str], ...]) -> Any:
    options = ("-std=c++17", *(f"-D{name}={text}" for name, text in macros))
    try:
        module = _cupy().RawModule(code=source_of(source), options=options)
        module.compile()
    except Exception as error:
        raise InputError(f"kernels/{source} does not compile with {' '.join(options)}: {error}") from error
    return module


def _cupy() -> Any:
    return importlib.import_module("cupy")
