"""Compile every kernels/*.cu as it stands, for every architecture we support. Needs no GPU.

    python .ci/compile_kernels.py [--nvrtc] [FILE.cu ...]

Uses nvcc if there is one (but with --nvrtc), else NVRTC (cuda-bindings or CuPy). Fails on an error and a compile that
takes too long, because a user's first frame waits for it. Without a compiler it says so; that is a failure only in CI
(CI=true).
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
ARCHITECTURES = (
    "75",
    "80",
    "86",
    "89",
    "90",
    "100",
    "120",
)  # those that the compiler does not know are left out
# Macros that change what is compiled, tried for one architecture, with all that is its own (wgmma); the others are
# numbers, or text that tests compile.
ARCHITECTURE_OF_VARIANTS = "90a"
VARIANTS = (
    ("TYPE=0",),
    ("TYPE=2", "WHOLE=3", "STAGED=1", "RUN=4"),
    ("SPLIT=4", "FILLED=3"),
    ("TYPE=3", "SPLIT=4", "COMPARE=1", "WEIGHTED=1", "STAGED=1", "RUN=4", "VOTERS=4", "ALSO_STEPS=1"),
    ("TYPE=2", "BM=64", "STAGES=6", "STAY=2", "OCTETS=1", "COMPARE=1", "VOTERS=4"),
    ("TYPE=2", "PIECE=8", "TRANSPOSE=1", "STRIDE_H=2", "STRIDE_W=2", "UP_H=2", "UP_W=2"),
)
GATE = 5.0  # CPU seconds for one file and one architecture; full unrolling of a convolution takes 30 to 60


class Result(NamedTuple):
    log: str | None  # what the compiler complained about; None if it compiled
    seconds: float  # of CPU, so that a busy machine fails nothing


class Compiler(NamedTuple):
    name: str
    architectures: tuple[str, ...]
    compile: Callable[..., Result]  # source, architecture, macros
    at_once: int = 1


def find_compiler(nvcc: bool = True) -> Compiler | None:
    return (_nvcc() if nvcc else None) or _nvrtc_of_cuda_bindings() or _nvrtc_of_cupy()


def _known(names: Iterable[Any]) -> tuple[str, ...]:
    known = {str(name).removeprefix("sm_") for name in names}
    return tuple(arch for arch in ARCHITECTURES if arch in known)


def _nvcc() -> Compiler | None:
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return None

    def run(source: Path, arch: str, macros: Sequence[str] = ()) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            command = [path, "-cubin", f"-arch=sm_{arch}", "-std=c++17", *_defines(macros)]
            command += ["-o", f"{folder}/cubin", str(source)]
            with tempfile.TemporaryFile("w+") as said:
                process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
                _, status, used = os.wait4(process.pid, 0)  # its own times, whatever runs beside it
                process.returncode = os.waitstatus_to_exitcode(status)
                said.seek(0)
                log = said.read() if process.returncode else None
        return Result(log, used.ru_utime + used.ru_stime)

    listed = subprocess.run([path, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return Compiler(path, _known(listed.split()), run, at_once=os.cpu_count() or 1)


def _nvrtc_of_cuda_bindings() -> Compiler | None:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        version = _answer(nvrtc.nvrtcVersion())
        architectures = _answer(nvrtc.nvrtcGetSupportedArchs())
    except (ImportError, RuntimeError):
        return None

    def run(source: Path, arch: str, macros: Sequence[str] = ()) -> Result:
        before = os.times()
        program = _answer(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
        options = [option.encode() for option in (*_options(arch), *_defines(macros))]
        error, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_answer(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        nvrtc.nvrtcDestroyProgram(program)
        return Result(log.decode().rstrip("\0") if int(error) else None, _since(before))

    return Compiler(f"NVRTC {version} (cuda.bindings)", _known(architectures), run)


def _nvrtc_of_cupy() -> Compiler | None:
    try:
        nvrtc = importlib.import_module("cupy.cuda").nvrtc  # no module of its own
        version = nvrtc.getVersion()
        architectures = nvrtc.getSupportedArchs()
    except (ImportError, RuntimeError):
        return None

    def run(source: Path, arch: str, macros: Sequence[str] = ()) -> Result:
        before = os.times()
        program = nvrtc.createProgram(source.read_text(), source.name, (), ())
        try:
            nvrtc.compileProgram(program, (*_options(arch), *_defines(macros)))
        except nvrtc.NVRTCError:
            return Result(nvrtc.getProgramLog(program), _since(before))
        finally:
            nvrtc.destroyProgram(program)
        return Result(None, _since(before))

    return Compiler(f"NVRTC {version} (CuPy)", _known(architectures), run)


def _options(arch: str) -> tuple[str, ...]:
    return (
        f"--gpu-architecture=sm_{arch}",
        "-std=c++17",
        "--device-as-default-execution-space",
        f"--include-path={KERNELS}",
    )


def _told(source: Path, macros: Sequence[str]) -> tuple[str, ...]:
    """Those macros that a source, or a header of its own, names; all others leave it as it is."""
    files, texts = [source], []
    for file in files:  # it grows
        texts.append(file.read_text())
        included = (file.parent / name for name in re.findall(r'#include "([^"]+)"', texts[-1]))
        files += [path for path in included if path.is_file() and path not in files]
    words = set(re.findall(r"\w+", " ".join(texts)))
    return tuple(macro for macro in macros if macro.partition("=")[0] in words)


def _defines(macros: Sequence[str]) -> list[str]:
    return [f"-D{macro}" for macro in macros]


def _answer(reply: tuple[Any, ...]) -> Any:
    error, *values = reply
    if int(error):
        raise RuntimeError(f"NVRTC: {error}")
    return tuple(values) if len(values) > 1 else values[0]


def _since(before: os.times_result) -> float:
    now = os.times()
    return now.user + now.system - before.user - before.system


def main(arguments: list[str]) -> int:
    sources = [Path(a) for a in arguments if a != "--nvrtc"] or sorted(KERNELS.glob("*.cu"))
    compiler = find_compiler(nvcc="--nvrtc" not in arguments)
    if compiler is None:
        print(
            "kernels: not compiled, there is neither nvcc nor NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc)"
        )
        return 1 if os.environ.get("CI") else 0
    bad = 0
    print(f"kernels: {compiler.name}, sm_{', '.join(compiler.architectures)}")
    todo: list[tuple[str, tuple[str, ...]]] = [(arch, ()) for arch in compiler.architectures]
    if ARCHITECTURE_OF_VARIANTS.rstrip("a") in compiler.architectures:
        todo += [(ARCHITECTURE_OF_VARIANTS, macros) for macros in VARIANTS]
    todo += [(compiler.architectures[0], ("TYPE=2",))]  # the oldest one lacks instructions for halves
    every = [(source, arch, _told(source, macros)) for source in sources for arch, macros in todo]
    every = list(dict.fromkeys(every))
    with ThreadPoolExecutor(compiler.at_once) as pool:
        results = pool.map(lambda job: compiler.compile(*job), every)
        for (source, arch, macros), (log, seconds) in zip(every, results, strict=True):
            slow = seconds > GATE
            bad += log is not None or slow
            word = "ERROR" if log is not None else f"slower than {GATE:.0f} s" if slow else "ok"
            print(f"  {' '.join((source.name, *macros))} sm_{arch}: {seconds:.2f} s {word}")
            if log is not None:
                print(log)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
