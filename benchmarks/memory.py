"""Peak memory of a network and of its converted form, each in a process of its own.

    python benchmarks/memory.py resnet50 [--frames 5] [--size HxW] [--json]

peak         the largest resident set of the process (VmHWM)
above torch  the peak less that of a process that only imports torch
running      the peak after the first two frames, when conversion and warm-up are over
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deltaconvert.text import table

KINDS = ("torch", "dense", "delta")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    options = arguments()
    if options.kind:
        print(json.dumps(measure(options)))
        return
    found = {kind: child(kind) for kind in KINDS}
    for facts in found.values():
        facts["above_torch_mb"] = facts["peak_mb"] - found["torch"]["peak_mb"]
    if options.json:
        print(json.dumps(found))
        return
    columns = list(found["delta"])
    body = [(kind, *(f"{facts.get(column, 0):.0f}" for column in columns)) for kind, facts in found.items()]
    print(table((options.network, *columns), body))


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--density", type=float, default=5, help="percent of the frame in the box")
    parser.add_argument("--size", help="HxW instead of the network's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # for the child processes
    return parser.parse_args(given)


def child(kind: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--kind", kind]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The memory of this process in megabytes."""
    torch.set_num_threads(options.threads)
    if options.kind == "torch":
        return {"peak_mb": peak_mb()}
    from benchmarks.cpu import WARM, network, shape_of, video

    base = torch.rand(shape_of(options.network, options.size))
    run, facts = (dense if options.kind == "dense" else delta)(network(options.network), base)
    before = 0.0
    for number, frame in enumerate(video(base, options.density / 100, WARM + options.frames)):
        if number == WARM:
            before = peak_mb()
            CLEAR_REFS.write_text("5")  # resets the peak to what is resident now
        run(frame)
    running = peak_mb()
    return {"peak_mb": max(before, running), "running_mb": running, **facts}


def dense(model: torch.nn.Module, base: Tensor) -> tuple[Callable[[Tensor], Any], dict[str, float]]:
    from benchmarks.engines import folded
    from deltaconvert.normalise import normalise
    from deltaconvert.tracing.trace import trace

    with torch.no_grad():
        graph = folded(normalise(trace(model, (base,), {}, ()).graph))

    def run(frame: Tensor) -> None:
        with torch.inference_mode():
            graph(frame.contiguous(memory_format=torch.channels_last))

    return run, {}


def delta(model: torch.nn.Module, base: Tensor) -> tuple[Callable[[Tensor], Any], dict[str, float]]:
    import deltaconvert

    converted = deltaconvert.convert(model, base)
    return converted, {"state_mb": converted.stats().state_bytes / 1e6}


def peak_mb() -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this system does not say what a process used at most: /proc/self/status has no VmHWM")


if __name__ == "__main__":
    main()
