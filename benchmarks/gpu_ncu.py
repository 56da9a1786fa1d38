"""Nsight Compute on the kernels of a converted network's frame, each by itself.

ncu ... python benchmarks/gpu_ncu.py resnet50:half:8 5,100      what `by_ncu` runs: the last frame of each density
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_record import Unit
from benchmarks.gpu_timeline import Launch, layers_of, prepared
from deltaconvert.backends.cuda import skipping

METRICS = {"alone_us": "gpu__time_duration.sum", "dram_bytes": "dram__bytes.sum"}


def by_ncu(unit: Unit, densities: Sequence[float]) -> dict[float, list[dict[str, Any]]]:
    """For each density, the kernels of a frame in their order, with name and METRICS."""
    tool = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    how = "--csv --print-units base --profile-from-start off --cache-control none --clock-control none --metrics"
    percents = ",".join(f"{100 * density:g}" for density in densities)
    command = [tool, *how.split(), ",".join(METRICS.values()), sys.executable, __file__, str(unit), percents]
    done = subprocess.run(command, capture_output=True, text=True)
    kernels = read_ncu(done.stdout)
    if not kernels or len(kernels) % len(densities):
        print(f"ncu gave {len(kernels)} kernels: {done.stdout[-1500:]} {done.stderr[-1500:]}")
        return {}
    each = len(kernels) // len(densities)
    return {density: kernels[i * each : (i + 1) * each] for i, density in enumerate(densities)}


def read_ncu(text: str) -> list[dict[str, Any]]:
    """The kernels in ncu's table, which has a line for each metric."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    names = {metric: key for key, metric in METRICS.items()}
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines[first:]):
        kernel = kernels.setdefault(row["ID"], {"name": row["Kernel Name"]})
        value = re.sub(r"[^0-9.eE+-]", "", row["Metric Value"] or "")
        key = names.get(row["Metric Name"])
        if key and value:
            kernel[key] = float(value) / (1e3 if key == "alone_us" else 1)  # nanoseconds
    return list(kernels.values())


@torch.no_grad()
def play(unit: Unit, densities: Sequence[float]) -> None:
    """Plays what ncu looks at: the last frame of each density."""
    with mock.patch.object(skipping, "WORTH", sys.maxsize):  # ncu cannot see kernels that a graph may skip
        delta, frames, _ = prepared(unit)
    for density in densities:
        *before, last = frames(density)
        for frame in before:
            delta(frame)
        (buffer,) = delta.frame_buffers()
        buffer.copy_(last)
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
        delta(buffer)
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()


def by_layer_alone(
    alone: Sequence[dict[str, Any]], launches: Sequence[Launch]
) -> dict[str, dict[str, float]]:
    """Of each layer, METRICS summed over its kernels."""
    found: dict[str, dict[str, float]] = {}
    for layer, row in zip(layers_of([row["name"] for row in alone], launches), alone, strict=True):
        of_layer = found.setdefault(layer, dict.fromkeys(METRICS, 0.0))
        for key in METRICS:
            of_layer[key] += row.get(key, 0.0)
    return found


if __name__ == "__main__":
    play(Unit.of(sys.argv[1]), [float(percent) / 100 for percent in sys.argv[2].split(",")])
