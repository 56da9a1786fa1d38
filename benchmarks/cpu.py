"""CPU speed, dense against delta, interleaved in one run: a textured box moves over a still textured background.

    python benchmarks/cpu.py [--networks resnet50,mobilenetv2] [--densities 0,1,5,25,100] [--repeats 5] [--out FILE]

Dense is the best of torch channels_last with batch norm folded and, with --compile, torch.compile; every frame has
fresh texture in the box. Prints a table and writes JSON with date, command, versions and processor.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
import model_zoo
from deltaconvert.report import label, table

SIZES = {"resnet50": (1, 3, 720, 1280), "mobilenetv2": (1, 3, 720, 1280), "dncnn": (1, 1, 360, 480)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet50,mobilenetv2,dncnn")
    parser.add_argument(
        "--densities", default="0,1,5,10,25,50,100", help="percent of the frame that the box covers"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--profile", action="store_true", help="print where a frame of the last density goes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for name in options.networks.split(","):
        results += measure(name, [float(d) / 100 for d in options.densities.split(",")], options)
    columns = ("network", "density", "dense_ms", "delta_ms", "ratio", "work", "bound", "error")
    body = [
        [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in results
    ]
    print(table(columns, body))
    if options.out:
        options.out.write_text(json.dumps({**environment(), "results": results}, indent=1) + "\n")


def measure(name: str, densities: list[float], options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one network: medians over `repeats` frames, each timed dense and delta one after the other."""
    shape = SIZES[name]
    torch.manual_seed(0)
    model = network(name)
    base = torch.rand(shape)
    start = time.perf_counter()
    delta = deltaconvert.convert(model, base)
    convert_seconds = time.perf_counter() - start
    dense = {"channels_last": folded(delta)}
    if options.compile:
        dense["compile"] = torch.compile(copy.deepcopy(dense["channels_last"]))
    rows = []
    with torch.inference_mode():
        for density in densities:
            times: dict[str, list[float]] = {key: [] for key in (*dense, "delta")}
            work, error = [], 0.0
            delta.reset()
            for index, frame in enumerate(video(base, density, options.repeats + 2)):
                nhwc = frame.contiguous(memory_format=torch.channels_last)
                expected = None
                for key, run in dense.items():
                    seconds, expected = timed(lambda run=run, nhwc=nhwc: run(nhwc))
                    times[key].append(seconds)
                seconds, got = timed(lambda frame=frame: delta(frame))
                times["delta"].append(seconds)
                if index >= 2:
                    work.append(delta.stats().work)
                error = max(error, float((got - expected).abs().max() / expected.abs().max()))
            medians = {key: statistics.median(values[2:]) * 1e3 for key, values in times.items()}
            best = min(medians[key] for key in dense)
            share = statistics.median(work)
            row: dict[str, object] = {
                "network": name,
                "density": density,
                "dense_ms": best,
                "delta_ms": medians["delta"],
                "ratio": best / medians["delta"],
                "work": share,
                "bound": 1 / share if share else float("inf"),
                "error": error,
                "medians_ms": medians,
                "convert_seconds": convert_seconds,
                "shape": list(shape),
            }
            rows.append(row)
            print(
                f"{name} {density:.0%}: dense {best:.1f} ms, delta {medians['delta']:.1f} ms, {row['ratio']:.2f}x",
                flush=True,
            )
    if options.profile:
        before, *_, after = video(base, densities[-1], 4)
        profile(delta, before, after)
    return rows


def network(name: str) -> nn.Module:
    if name != "dncnn":
        return model_zoo.create(name, seed=0)
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, 1, 1), nn.ReLU()]
    for _ in range(15):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 3, 1, 1)).eval()


def folded(delta: deltaconvert.DeltaModel) -> Callable[[Tensor], Tensor]:
    """The dense network of the same normalised graph: batch norm folded, channels_last, inference only."""
    graph = copy.deepcopy(delta.graph).to(memory_format=torch.channels_last)
    return lambda frame: graph(frame)[0]


def video(base: Tensor, density: float, frames: int) -> Iterator[Tensor]:
    """A box of `density` of the frame with new texture in every frame; it moves by two pixels a frame."""
    height, width = base.shape[2:]
    h, w = round(height * density**0.5), round(width * density**0.5)
    yield base.clone()
    for index in range(1, frames):
        frame = base.clone()
        y, x = min((height - h) // 3, height - h), min((width - w) // 3 + 2 * index, width - w)
        frame[:, :, y : y + h, x : x + w] = torch.rand(*base.shape[:2], h, w)
        yield frame


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def profile(delta: deltaconvert.DeltaModel, frame: Tensor, after: Tensor) -> None:
    """Milliseconds a step from `frame` to `after`, the slowest first."""
    delta(frame)
    program = delta._program
    spent: dict[int, float] = {}

    def clocked(index: int, step: Callable[..., None]) -> Callable[..., None]:
        def run(values: object) -> None:
            start = time.perf_counter()
            step(values)
            spent[index] = time.perf_counter() - start

        return run

    steps = program._steps
    program._steps = [clocked(i, step) for i, step in enumerate(steps)]
    delta(after)
    program._steps = steps
    nodes = [n for n in program.plan.graph.graph.nodes if n.op not in ("placeholder", "output")]
    layers = {layer.path: layer for layer in delta.stats().layers}
    body = []
    for index, seconds in sorted(spent.items(), key=lambda item: -item[1])[:25]:
        node = nodes[index]
        layer = layers.get(node.meta.get("path", node.name))
        notes = node.meta.get("cpu", {})
        body.append(
            (
                node.meta.get("path", node.name),
                label(node),
                "x".join(map(str, node.meta["shape"])),
                f"{seconds * 1e3:.2f}",
                f"{layer.computed:.1%} {layer.density:.1%}" if layer else "",
                f"{layer.macs_done / seconds / 1e9:.0f}" if layer else "",
                f"{notes.get('dense_from', 0):.2f}",
            )
        )
    print(table(("step", "operator", "shape", "ms", "computed, changed", "GMAC/s", "dense from"), body))
    print(f"sum {sum(spent.values()) * 1e3:.1f} ms")


def environment() -> dict[str, str]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deltaconvert": deltaconvert.__version__,
        "cpu": f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }


if __name__ == "__main__":
    main()
