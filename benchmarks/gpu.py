"""GPU speed, dense against delta in one run: a textured box moves over a still textured background, threshold 0.

    python benchmarks/gpu.py [--networks resnet50] [--batches 1,8] [--types half,tf32] [--out FILE] [--profile]

Dense is the network of the same normalised graph (batch norm folded), channels_last, cudnn.benchmark on: eager, as a
CUDA graph, and with --compile by torch.compile. A time is the median over frames between two events on the device, the
frames queued one after the other; `host` is what a call costs until it returns. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
import model_zoo
from deltaconvert.report import table

TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float": torch.float32}
SIZE = (1080, 1920)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet50")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--types", default="half,tf32")
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--profile", type=float, help="print the kernels of frames of this density")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    results = []
    for name in options.networks.split(","):
        for batch in options.batches.split(","):
            for kind in options.types.split(","):
                results += measure(name, int(batch), kind, options)
                if options.out:
                    options.out.write_text(json.dumps({**environment(), "results": results}, indent=1) + "\n")
    columns = (
        "network batch type density dense_ms delta_ms ratio work efficiency p99_ms host_ms error".split()
    )
    body = [
        [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in results
    ]
    print(table(columns, body))


@torch.no_grad()
def measure(name: str, batch: int, kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    dtype = TYPES[kind]
    torch.manual_seed(0)
    model = network(name).to("cuda", dtype)
    base = torch.rand(batch, model_channels(model), *SIZE, device="cuda", dtype=dtype)
    start = time.perf_counter()
    delta = deltaconvert.convert(model, base)
    delta(base)
    torch.cuda.synchronize()
    cold = time.perf_counter() - start
    dense, runs = baselines(delta, base, options)
    best = min(dense.values())
    print(f"{name} batch {batch} {kind}: dense {dense}, first frame after {cold:.1f} s", flush=True)
    rows = []
    for density in [float(d) / 100 for d in options.densities.split(",")]:
        frames = list(video(base, density, options.frames))
        delta.reset()
        for frame in frames[:3]:
            delta(frame)
        times, host, output = timed(delta, frames[3:])
        expected = runs["eager"](frames[-1])
        row = {
            "network": name,
            "batch": batch,
            "type": kind,
            "density": density,
            "dense_ms": best,
            "delta_ms": statistics.median(times),
            "p99_ms": sorted(times)[int(len(times) * 0.99)],
            "host_ms": host,
            "ratio": best / statistics.median(times),
            "work": delta.stats().work,
            "dense_all_ms": dense,
            "error": float((output - expected).abs().max() / expected.abs().max()),
            "state_bytes": delta.stats().state_bytes,
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "first_frame_seconds": cold,
            "shape": list(base.shape),
        }
        row["efficiency"] = row["ratio"] * row["work"]
        rows.append(row)
        print(
            f"  {density:.0%}: {row['delta_ms']:.3f} ms, {row['ratio']:.2f}x, host {host:.3f} ms", flush=True
        )
        if options.profile is not None and abs(density - options.profile / 100) < 1e-9:
            profile(delta, frames)
    return rows


def baselines(
    delta: deltaconvert.DeltaModel, base: Tensor, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Callable[[Tensor], Tensor]]]:
    """Milliseconds of each way to run the dense network, and the ways."""
    graph = copy.deepcopy(delta.graph).to(memory_format=torch.channels_last)
    frame = base.contiguous(memory_format=torch.channels_last)

    def eager(frame: Tensor) -> Tensor:
        return graph(frame)[0]

    runs: dict[str, Callable[[Tensor], Tensor]] = {"eager": eager, "graph": captured(eager, frame)}
    if options.compile:
        runs["compile"] = torch.compile(eager, mode="reduce-overhead")
    times = {}
    for key, run in runs.items():
        for _ in range(5):
            run(frame)
        times[key] = statistics.median(timed(run, [frame] * options.frames)[0])
    return times, runs


def captured(run: Callable[[Tensor], Tensor], frame: Tensor) -> Callable[[Tensor], Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(frame)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(frame)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return output

    return replay


def timed(run: Callable[[Tensor], Tensor], frames: list[Tensor]) -> tuple[list[float], float, Tensor]:
    """(milliseconds of each frame on the device, of a call on the host, the last output)."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(frames) + 1)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    marks[0].record()
    for frame, mark in zip(frames, marks[1:], strict=True):
        output = run(frame)
        mark.record()
    host = (time.perf_counter() - start) / len(frames) * 1e3
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)], host, output


def network(name: str) -> nn.Module:
    if name != "dncnn":
        return model_zoo.create(name, seed=0)
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, 1, 1), nn.ReLU()]
    for _ in range(15):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 3, 1, 1)).eval()


def model_channels(model: nn.Module) -> int:
    return next(p for p in model.parameters() if p.dim() == 4).shape[1]


def video(base: Tensor, density: float, frames: int) -> Iterator[Tensor]:
    """A box of `density` of the frame with new texture in every frame; it moves by two pixels a frame."""
    height, width = base.shape[2:]
    h, w = round(height * density**0.5), round(width * density**0.5)
    for index in range(frames):
        frame = base.clone()
        y, x = (height - h) // 3, min((width - w) // 3 + 2 * index, width - w)
        frame[:, :, y : y + h, x : x + w] = torch.rand_like(frame[:, :, y : y + h, x : x + w])
        yield frame


def profile(delta: deltaconvert.DeltaModel, frames: list[Tensor]) -> None:
    """Microseconds a frame of the slowest kernels, by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        for frame in frames[3:8]:
            delta(frame)
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = {}
    for event in found.events():
        totals.setdefault(event.name, []).append(event.device_time_total / 5)
    body = [
        (name[:70], str(len(spent) // 5), f"{sum(spent):.1f}", f"{max(spent) * 5:.1f}")
        for name, spent in sorted(totals.items(), key=lambda item: -sum(item[1]))[:16]
    ]
    print(table(("kernel", "a frame", "us a frame", "longest us"), body))


def environment() -> dict[str, str]:
    import cupy

    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "deltaconvert": deltaconvert.__version__,
    }


if __name__ == "__main__":
    main()
