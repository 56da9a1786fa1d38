"""What it gives to start kernels early and to make lists aside: a network with and without, in one run; and a timeline.

    python benchmarks/launches.py [--network resnet50] [--batch 1] [--type half] [--densities 0,1,5,25] [--timeline 5]

A time is the median over frames of the graph alone, between two events on the device, on the video of
benchmarks/gpu.py. This needs a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
from benchmarks.gpu_dense import TYPES, channels, network
from benchmarks.gpu_frames import video
from benchmarks.gpu_record import environment
from deltaconvert.backends import cuda
from deltaconvert.text import table

VARIANTS: dict[str, Callable[[], Any]] = {
    "as it is": contextlib.nullcontext,
    "plain launches": lambda: mock.patch.object(cuda.kernels, "_driver", lambda: None),
    "lists all ahead": lambda: mock.patch.object(
        cuda.Backend, "aside", lambda backend: contextlib.nullcontext()
    ),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--type", default="half", choices=TYPES)
    parser.add_argument("--size", default="1080x1920")
    parser.add_argument("--densities", default="0,1,5,25", help="percent of the frame")
    parser.add_argument("--threshold", type=float, default=0.0, help="of activations")
    parser.add_argument("--timeline", type=float, help="print the kernels of a frame of this density")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = network(options.network, options.type)
    size = [int(side) for side in options.size.split("x")]
    base = torch.rand(options.batch, channels(model), *size, device="cuda", dtype=TYPES[options.type])
    results: dict[str, dict[str, float]] = {}
    for name, variant in VARIANTS.items():
        with variant():
            delta = deltaconvert.convert(model, base, threshold={"activation": options.threshold})
            delta(base)  # the graph is captured now
        results[name] = {density: milliseconds(delta, base, density) for density in densities(options)}
        if options.timeline is not None and name == "as it is":
            print(timeline(delta, list(video(base, options.timeline / 100, 6))))
    print(
        table(["", *densities(options)], [[n, *(f"{t:.3f}" for t in r.values())] for n, r in results.items()])
    )
    if options.out:
        found = {
            **environment(),
            "options": {k: str(v) for k, v in vars(options).items()},
            "graph_ms": results,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def densities(options: argparse.Namespace) -> list[str]:
    return [f"{density}%" for density in options.densities.split(",")]


def milliseconds(delta: deltaconvert.DeltaModel, base: torch.Tensor, density: str, frames: int = 20) -> float:
    recording = delta._program._backend._recording
    times = []
    for frame in video(base, float(density.rstrip("%")) / 100, frames):
        for slot in recording.inputs.values():
            slot.copy_(frame)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(400_000)  # so that the whole graph is queued before it starts
        start.record()
        recording._graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def traced(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kernels and copies of `call` in the order of their start, from torch's trace; times are in microseconds."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kept = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    return sorted(kept, key=lambda e: e["ts"])


def timeline(delta: deltaconvert.DeltaModel, frames: list[torch.Tensor]) -> str:
    """Prints when kernels ran, in microseconds from the start of a frame: each starts before the one before it ends."""
    for frame in frames[:-1]:
        delta(frame)
    events = traced(lambda: delta(frames[-1]))
    first = events[0]["ts"]
    body, end = [], 0.0
    for e in events:
        begin = e["ts"] - first
        body.append((f"{begin:.1f}", f"{e['dur']:.1f}", f"{begin + e['dur'] - end:.1f}", e["name"][:40]))
        end = max(end, begin + e["dur"])
    return table(("starts", "runs", "ends after the last", "kernel"), body)


if __name__ == "__main__":
    main()
