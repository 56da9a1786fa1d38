"""Dense networks that are compiled beside the measurements of others, for benchmarks/gpu.py.

torch.compile takes half a minute to minutes for a network, nearly all of it on the CPU. Each runs in a process of its
own, on the cores that this one is not bound to (`taskset -c 0-3 python benchmarks/gpu.py ...`), and has the GPU to
itself only while it times candidates (`gpu_dense.alone`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.gpu_record import Unit


class Ahead:
    """What is compiled for units, in their order, `at_once` side by side; with 0 nothing is."""

    def __init__(
        self, units: Sequence[Unit], modes: Sequence[str], kept: Path | None, at_once: int, seconds: float
    ):
        self._pool = ThreadPoolExecutor(max(1, at_once))
        self._running: list[subprocess.Popen[bytes]] = []
        self._found: dict[Unit, list[Future[Any]]] = {unit: [] for unit in units}
        if kept is None or not at_once:
            return
        for unit in units:
            for mode in modes:
                if not kept_file(kept, unit, mode).exists():
                    self._found[unit].append(self._pool.submit(self._compile, unit, mode, kept, seconds))

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.kill()

    def next(self, units: Sequence[Unit]) -> Unit:
        """The first of `units` for which all is compiled, or was tried; waits until there is one."""
        while True:
            for unit in units:
                if all(future.done() for future in self._found[unit]):
                    return unit
            waited_for = [future for unit in units for future in self._found[unit] if not future.done()]
            wait(waited_for, return_when=FIRST_COMPLETED)

    def _compile(self, unit: Unit, mode: str, kept: Path, seconds: float) -> None:
        script = [str(Path(__file__).with_name("gpu.py")), "warm", "--kept", str(kept)]
        command = [sys.executable, *script, "--modes", mode, "--units", str(unit)]
        others = sorted(set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0))
        if others and shutil.which("taskset"):
            command = ["taskset", "-c", ",".join(map(str, others)), *command]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._running.append(process)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:  # the unit compiles by itself
            process.kill()


def kept_file(kept: Path, unit: Unit, mode: str) -> Path:
    return kept / f"{'-'.join(map(str, unit))}.{mode}.xz"


def kept_files(kept: Path | None, unit: Unit, modes: Sequence[str]) -> dict[str, Path]:
    """By mode, what is there."""
    if kept is None:
        return {}
    files = {mode: kept_file(kept, unit, mode) for mode in modes}
    return {mode: file for mode, file in files.items() if file.exists()}
