"""Compiles the baselines of benchmarks/gpu.py in parallel, before anything is measured, and keeps them in files.

torch.compile takes half a minute for a network, and minutes with max-autotune, nearly all of it on the CPU. Each
network is compiled by a process of its own, which has the GPU to itself while it times candidates (`gpu_dense.alone`).
Nothing is measured meanwhile: when that was tried, a frame of 12 ms took up to 27.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_record import Unit


def compile_ahead(
    units: Sequence[Unit], modes: Sequence[str], kept: Path, at_once: int, seconds: float
) -> list[Unit]:
    """Compile what is not in `kept`, in at most `seconds`; returns the units, those that still lack something last."""
    missing = [(unit, mode) for unit in units for mode in modes if not kept_file(kept, unit, mode).exists()]
    until = time.monotonic() + seconds

    def compile_one(unit: Unit, mode: str) -> None:
        script = [str(Path(__file__).with_name("gpu.py")), "warm", "--kept", str(kept)]
        command = [sys.executable, *script, "--modes", mode, "--units", str(unit)]
        if (left := until - time.monotonic()) > 0:
            try:
                subprocess.run(command, timeout=left, capture_output=True)
            except subprocess.TimeoutExpired:
                print(f"{unit} {mode} was not compiled in time")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda pair: compile_one(*pair), missing))
    return sorted(units, key=lambda unit: len(kept_files(kept, unit, modes)) < len(modes))


def kept_file(kept: Path, unit: Unit, mode: str) -> Path:
    return kept / f"{'-'.join(map(str, unit))}.{mode}.xz"


def kept_files(kept: Path | None, unit: Unit, modes: Sequence[str]) -> dict[str, Path]:
    """The file of each mode that has been compiled."""
    if kept is None:
        return {}
    files = {mode: kept_file(kept, unit, mode) for mode in modes}
    return {mode: file for mode, file in files.items() if file.exists()}
