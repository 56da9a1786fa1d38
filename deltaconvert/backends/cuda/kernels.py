"""kernels/*.cu compiled at run time by CuPy and launched on torch's current stream. The only file that imports it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
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
NON_BLOCKING = 1  # flag of a stream that does not wait for the default one
EXACT = ("conv_wgmma.cu", "conv_behind.cu")  # sources that are compiled for one architecture only
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
    """A compiled kernel. If it calls wait_for_predecessor (kernels/common.cuh), it starts while the kernel before it
    in the stream still runs, provided that the device and the driver's bindings support that."""

    def __init__(self, source: str, name: str, macros: Mapping[str, Any], shared_bytes: int = 0):
        options = tuple(sorted((k, str(v)) for k, v in macros.items()))
        self.name, self._shared_bytes = name, shared_bytes
        self._module = _compiled(source, options, torch.cuda.current_device())
        self._waits = source_of(source).count("wait_for_predecessor()") > 2  # common.cuh has two of these

    @cached_property
    def _function(self) -> Any:
        function = self._module.result().get_function(self.name)
        if self._shared_bytes > 48 << 10:  # the largest of all launches of the kernel
            most = max(function.max_dynamic_shared_size_bytes, self._shared_bytes)
            function.max_dynamic_shared_size_bytes = most
        return function

    def __call__(
        self,
        grid: tuple[int, ...],
        block: int,
        *args: Tensor | np.generic,
        overlap: bool = True,
        shared_bytes: int | None = None,
    ) -> None:
        """args: tensors go by their address, everything else is a numpy scalar of the parameter's type.

        overlap: it may start before the one before it ends. shared_bytes: of this launch, if not all it may use.
        """
        shared_bytes = self._shared_bytes if shared_bytes is None else shared_bytes
        passed = []
        for arg in args:
            if isinstance(arg, Tensor):
                passed.append(np.uint64(arg.data_ptr()))
            elif isinstance(arg, np.generic):
                passed.append(arg)
            else:
                raise TypeError(f"a kernel's argument is a {type(arg).__name__}: {arg!r}")
        driver = bindings() if self._waits and overlap else None
        if driver is None or torch.cuda.get_device_capability() < (9, 0):
            self._function(grid, (block,), tuple(passed), shared_mem=shared_bytes)
        else:
            _launch_early(driver, self._function.kernel.ptr, grid, block, shared_bytes, passed)

    def blocks_at_once(self, block: int) -> int | None:
        """How many blocks a multiprocessor holds at a time; None where the driver cannot be asked."""
        driver = bindings()
        if driver is None:
            return None
        error, count = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
            driver.CUfunction(self._function.kernel.ptr), block, self._shared_bytes
        )
        return None if int(error) or count == 0 else int(count)

    def clusters_at_once(self, cluster: int, block: int) -> int | None:
        """How many clusters of `cluster` blocks the device holds at a time; None where the driver cannot be asked."""
        driver = bindings()
        if driver is None:
            return None
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = self._shared_bytes
        error, count = driver.cuOccupancyMaxActiveClusters(
            driver.CUfunction(self._function.kernel.ptr), config
        )
        return None if int(error) or count == 0 else int(count)


def _launch_early(
    driver: Any,
    function: int,
    grid: tuple[int, ...],
    block: int,
    shared_bytes: int,
    args: Sequence[np.generic],
) -> None:
    """Programmatic dependent launch by the driver's API, since CuPy has no launch attributes."""
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = shared_bytes
    config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
    config.attrs, config.numAttrs = [attribute], 1
    values = np.zeros(len(args), np.uint64)  # each argument in the first bytes of a word
    for i, arg in enumerate(args):
        values[i : i + 1].view(arg.dtype)[0] = arg
    pointers = values.ctypes.data + 8 * np.arange(len(args), dtype=np.uint64)
    (error,) = driver.cuLaunchKernelEx(config, driver.CUfunction(function), pointers.ctypes.data, 0)
    if int(error):
        raise RuntimeError(f"a kernel could not be launched: {error}")


@cache
def bindings() -> Any:
    """The driver's own bindings; None where they are not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return None


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


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of its own, to capture in. torch hands out 32 streams in turn; a launch in a stream in which another
    thread captures becomes part of that graph, or fails.

    It is never destroyed, only handed out again when it is free: torch's allocator remembers the streams in which
    memory was used, and waits for them when it gives segments back (`torch.cuda.empty_cache`)."""
    free, cupy = _free_streams(device), _cupy()
    try:
        handle = free.pop()
    except IndexError:
        with cupy.cuda.Device(device.index):
            handle = cupy.cuda.runtime.streamCreateWithFlags(NON_BLOCKING)
    stream = torch.cuda.ExternalStream(handle, device)
    stream.lent = _Lent(handle, free)  # type: ignore[attr-defined]
    return stream


class _Lent:
    """Attached to a stream object; gives the stream back when the object is gone."""

    def __init__(self, handle: int, free: list[int]):
        self._handle, self._free = handle, free

    def __del__(self) -> None:
        self._free.append(self._handle)


@cache
def _free_streams(device: torch.device) -> list[int]:
    return []


@cache
def source_of(name: str) -> str:
    """The text of a kernel with its own headers inlined, because CuPy's disk cache does not notice changes in headers.

    A header is inlined where it is first named, even inside an #if: what several headers need has to be named earlier.
    """
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
def _compiled(source: str, macros: tuple[tuple[str, str], ...], device: int) -> Future[Any]:
    """Compiled in another thread, so that a network's kernels take as long as the slowest of them."""
    return _compilers().submit(_compile, source, macros, device)


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="nvrtc")


def _compile(source: str, macros: tuple[tuple[str, str], ...], device: int) -> Any:
    options = ("-std=c++17", *(f"-D{name}={text}" for name, text in macros))
    cupy = _cupy()
    try:
        with cupy.cuda.Device(device):
            if source in EXACT:
                return _exactly(source_of(source), options)
            module = cupy.RawModule(code=source_of(source), options=options)
            module.compile()
    except Exception as error:
        raise InputError(f"kernels/{source} does not compile with {' '.join(options)}: {error}") from error
    return module


def _exactly(code: str, options: tuple[str, ...]) -> Any:
    """Compiled for sm_90a: CuPy itself compiles for sm_90, which has no wgmma."""
    cupy = _cupy()
    nvrtc = cupy.cuda.nvrtc
    options = (*options, f"-arch=sm_{cupy.cuda.Device().compute_capability}a", "-ftz=true")
    key = hashlib.sha256(repr((code, options, nvrtc.getVersion())).encode()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR", Path.home() / ".cupy" / "kernel_cache"))
    path = folder / f"deltaconvert-{key}.cubin"
    if not path.exists():
        program = nvrtc.createProgram(code, "", (), ())
        try:
            nvrtc.compileProgram(program, options)
            cubin = nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        finally:
            nvrtc.destroyProgram(program)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(cubin)
        os.replace(file.name, path)
    return cupy.RawModule(path=str(path))


def _cupy() -> Any:
    return importlib.import_module("cupy")


def strides_of(x: Tensor) -> tuple[np.int64, ...]:
    return tuple(np.int64(stride) for stride in x.stride())


def number_of(value: float | None, dtype: torch.dtype) -> np.floating:
    assert value is not None
    return np.float64(value) if dtype.itemsize == 8 else np.float32(value)
