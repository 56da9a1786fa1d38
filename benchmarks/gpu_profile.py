"""Where a frame's time goes on a GPU: what each group of layers takes, what it would take at best, and the gap.

    python benchmarks/gpu_profile.py --out FILE [--units resnet50:half:8,...] [--ncu 5,100] [--seconds 250]
    python benchmarks/gpu_profile.py table FILE

A group is the layers of one kind on maps of one size. Frames are those of gpu.py, and run as they always do: one CUDA
graph whose kernels start early. `now` is what each kernel adds to the chain, from the end of the kernel before it to
its own: they sum to the frame. Only where the GPU idles for longer than any kernel waits for another, which torch's
profiler makes it do between the copy of a frame and its graph, the time is left out. `floor` is what its bytes or its
operations take at the rate of a large copy or product (gpu.py). At the densities of --ncu, Nsight Compute runs each
kernel alone: `alone` is how long that takes, `memory` and `products` what share of those rates it reaches then.

FILE is read first: units that it holds are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks.gpu import model_and_frame  # noqa: E402
from benchmarks.gpu_dense import alone, ceilings  # noqa: E402
from benchmarks.gpu_floor import work_by_layer  # noqa: E402
from benchmarks.gpu_frames import video  # noqa: E402
from benchmarks.gpu_record import Unit, environment, here_and_now, markdown  # noqa: E402
from benchmarks.launches import traced  # noqa: E402
from deltaconvert import lower  # noqa: E402
from deltaconvert.backends import cuda  # noqa: E402
from deltaconvert.check import operator_of  # noqa: E402
from deltaconvert.ops.fused import head_of  # noqa: E402

UNITS = (Unit("resnet50", "half", 8), Unit("hrnet_w32", "half", 32), Unit("mobilenetv2", "half", 8))
METRICS = {"alone_us": "gpu__time_duration.sum", "dram_bytes": "dram__bytes.sum"}
FRAMES = 8  # the last one is looked at
IDLE = 30.0  # microseconds: kernels of a graph wait for each other for less


class Launch(NamedTuple):
    """layer: path of the step; kernel: its name."""

    layer: str
    kernel: str


class Event(NamedTuple):
    """A kernel, or a copy, on the device: microseconds."""

    name: str
    start: float
    end: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("measure", "table", "play"), default="measure")
    parser.add_argument("file", nargs="?", type=Path, help="of an earlier run, for table")
    parser.add_argument("--units", default=",".join(map(str, UNITS)))
    parser.add_argument("--densities", default="0,1,5,25,100", help="percent of the frame in the box")
    parser.add_argument("--ncu", default="", help="of these, under Nsight Compute as well")
    parser.add_argument("--seconds", type=float, default=1e9, help="no unit starts after so many")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    densities, under_ncu = (
        [float(percent) / 100 for percent in text.split(",") if percent]
        for text in (options.densities, options.ncu)
    )
    if options.action == "table":
        print(tables(json.loads(options.file.read_text())))
        return
    units = [Unit.of(text) for text in options.units.split(",")]
    if options.action == "play":
        play(units[0], densities)
        return
    facts: dict[str, Any] = {**environment(), "units": []}
    if options.out and options.out.exists():
        facts = json.loads(options.out.read_text())
    known = {Unit.of_row(row) for row in facts["units"]}
    began = time.perf_counter()
    for unit in units:
        if unit in known:
            continue
        if time.perf_counter() - began > options.seconds:
            print(f"time is over before {unit}")
            break
        facts["units"].append(measure(unit, densities, under_ncu))
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(tables(facts))


@torch.no_grad()
def measure(unit: Unit, densities: Sequence[float], ncu: Sequence[float]) -> dict[str, Any]:
    """What a unit's kernels take at each density, by group of layers."""
    limits = ceilings(unit.type)
    delta, frames, launches = prepared(unit)
    by_itself = by_ncu(unit, ncu) if ncu else {}
    groups_of, rows = Groups(delta), []
    for density in densities:
        events = timeline(delta, list(frames(density)))
        chain = by_layer(events, launches)
        groups = grouped(delta, groups_of, chain, limits)
        for name, found in by_layer_alone(by_itself.get(density, []), launches).items():
            group = groups[groups_of(name)]
            for key, value in found.items():
                group[key] = group.get(key, 0.0) + value
        rows.append(
            {
                "density": density,
                "frame_us": max(event.end for event in events) - events[0].start,
                "groups": groups,
            }
        )
    return {**unit._asdict(), **here_and_now(), **limits, "rows": rows}


def prepared(unit: Unit) -> tuple[deltaconvert.DeltaModel, Any, list[Launch]]:
    """A converted network whose graph is captured, its frames at a density, its launches in their order."""
    model, base = model_and_frame(unit)
    delta = deltaconvert.convert(model, base)
    with noted() as launches, alone():
        delta(base)
    return delta, lambda density: video(base, density, FRAMES), [*launches]


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """The launches of the last frame that is played or captured inside, in their order."""
    found: list[Launch] = []
    here = [""]
    start, step, launch = cuda.Backend._start, lower.Step.__call__, cuda.Backend.launch

    def start_anew(backend: Any) -> None:
        found.clear()
        here[0] = ""
        start(backend)

    def note_layer(self: Any, frame: Any) -> None:
        here[0] = self.node.meta.get("path", self.node.name)
        step(self, frame)

    def note_launch(backend: Any, kernel: Any, *args: Any, **options: Any) -> None:
        lists = kernel.name in ("spread", "list", "tally")
        found.append(Launch("" if lists else here[0], kernel.name))
        launch(backend, kernel, *args, **options)

    with (
        mock.patch.object(cuda.Backend, "_start", start_anew),
        mock.patch.object(lower.Step, "__call__", note_layer),
        mock.patch.object(cuda.Backend, "launch", note_launch),
    ):
        yield found


def timeline(delta: Any, frames: Sequence[torch.Tensor]) -> list[Event]:
    """The last frame's kernels and copies, by their start."""
    for frame in frames[:-1]:
        delta(frame)
    (buffer,) = delta.frame_buffers()
    buffer.copy_(frames[-1])
    with alone():
        events = traced(lambda: delta(buffer))
    return without_idle([Event(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events])


def without_idle(events: Sequence[Event]) -> list[Event]:
    """The same, where nothing runs for longer than IDLE moved together."""
    found, end, cut = [], events[0].start, 0.0
    for event in events:
        gap = event.start - end
        cut += gap if gap > IDLE else 0.0
        end = max(end, event.end)
        found.append(Event(event.name, event.start - cut, event.end - cut))
    return found


def by_layer(events: Sequence[Event], launches: Sequence[Launch]) -> dict[str, list[float]]:
    """Of each layer, what its kernels add to the chain. What torch launches belongs to the step that stores it."""
    found: dict[str, list[float]] = {}
    end = events[0].start
    for layer, event in zip(layers_of([event.name for event in events], launches), events, strict=True):
        found.setdefault(layer, []).append(max(0.0, event.end - end))
        end = max(end, event.end)
    return found


def by_layer_alone(
    alone: Sequence[dict[str, Any]], launches: Sequence[Launch]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for layer, row in zip(layers_of([row["name"] for row in alone], launches), alone, strict=True):
        of_layer = found.setdefault(layer, dict.fromkeys(METRICS, 0.0))
        for key in METRICS:
            of_layer[key] += row.get(key, 0.0)
    return found


def layers_of(names: Sequence[str], launches: Sequence[Launch]) -> list[str]:
    """Of each kernel by name, the layer that launched it: kernels of one name run in the order of their launches.

    Kernels of torch belong to the next layer in line, and those after the last of ours to none.
    """
    waiting: dict[str, list[str]] = {}
    for launch in reversed(launches):
        waiting.setdefault(launch.kernel, []).append(launch.layer)
    layers: list[str | None] = []
    for name in names:
        ours = waiting.get(name.split("(")[0])
        layers.append(ours.pop() if ours else None)
    following = ""
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if layer is None:
            layers[i] = following
        elif layer:
            following = layer
    return [layer or "" for layer in layers]


def grouped(
    delta: Any, groups_of: Groups, chain: dict[str, list[float]], limits: dict[str, float]
) -> dict[str, Any]:
    """{group: kernels, floor_us, now_us, operations}, in the order of the network."""
    work = work_by_layer(delta)
    groups: dict[str, Any] = {}
    for layer, spent in chain.items():
        group = groups.setdefault(
            groups_of(layer), {"kernels": 0, "floor_us": 0.0, "now_us": 0.0, "operations": 0.0}
        )
        moved, operations = work.get(layer, (0.0, 0.0))
        floor = max(moved / limits["bytes_per_second"], operations / limits["flops_per_second"])
        group["kernels"] += len(spent)
        group["floor_us"] += floor * 1e6
        group["now_us"] += sum(spent)
        group["operations"] += operations
    return groups


class Groups:
    """Kind and size of map of a layer."""

    def __init__(self, delta: Any):
        self._names: dict[str, str] = {}
        for node in delta._program.plan.graph.graph.nodes:
            operator, shape = operator_of(node), node.meta.get("shape", ())
            if operator is not None and len(shape) == 4:
                self._names[node.meta["path"]] = f"{kind_of(operator)} {'x'.join(map(str, shape[2:]))}"

    def __call__(self, layer: str) -> str:
        return self._names.get(layer, "frame, lists, counts")


def kind_of(operator: Any) -> str:
    head = head_of(operator)
    weight = getattr(head, "weight", None)
    if weight is None or weight.dim() != 4:
        return type(head).__name__
    kind = "depthwise" if head.groups == len(weight) > 1 else "grouped" if head.groups > 1 else ""
    return " ".join(filter(None, [kind, "x".join(map(str, weight.shape[2:]))]))


# ---- Nsight Compute


def by_ncu(unit: Unit, densities: Sequence[float]) -> dict[float, list[dict[str, Any]]]:
    """Of each density, the kernels of a frame in their order: name, and METRICS."""
    tool = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    percents = ",".join(f"{100 * density:g}" for density in densities)
    command = [
        tool,
        "--csv",
        "--print-units",
        "base",
        "--profile-from-start",
        "off",
        "--cache-control",
        "none",
    ]
    command += ["--clock-control", "none", "--metrics", ",".join(METRICS.values())]
    command += [sys.executable, __file__, "play", "--units", str(unit), "--densities", percents]
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
    """For ncu: the last frame of each density."""
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


# ---- what a JSON file says, as tables


def tables(facts: dict[str, Any]) -> str:
    """Markdown: of each unit `floor / now / gap` in microseconds, by group and density; then what ncu found."""
    parts = []
    for unit in facts["units"]:
        name = Unit(unit["network"], unit["type"], unit["batch"])
        rows = unit["rows"]
        cases = [f"{row['density']:.0%}" if row["density"] else "still" for row in rows]
        everything = [{**row["groups"], "all": _total(row["groups"])} for row in rows]
        body = [
            (group, str(found["kernels"]), *(_cell(groups[group]) for groups in everything))
            for group, found in everything[0].items()
        ]
        parts.append(f"{name}, floor / now / gap:\n\n{markdown(('group', 'kernels', *cases), body)}")
        under_ncu = [
            (case, groups) for case, groups in zip(cases, everything, strict=True) if _ran_alone(groups)
        ]
        if under_ncu:
            body = [
                (group, *(_alone(groups[group], unit) for _, groups in under_ncu)) for group in everything[0]
            ]
            head = ("group", *(case for case, _ in under_ncu))
            parts.append(f"{name}, alone / memory / products:\n\n{markdown(head, body)}")
    return "\n\n".join(parts)


def _cell(found: dict[str, float]) -> str:
    now, floor = found["now_us"], found["floor_us"]
    return " / ".join(f"{us:.0f}" for us in (floor, now, now - floor))


def _ran_alone(groups: dict[str, Any]) -> bool:
    return "alone_us" in groups["all"]


def _alone(found: dict[str, float], unit: dict[str, Any]) -> str:
    alone = found.get("alone_us", 0.0)
    if not alone:
        return ""
    memory = found["dram_bytes"] / alone * 1e6 / unit["bytes_per_second"]
    products = found.get("operations", 0.0) / alone * 1e6 / unit["flops_per_second"]
    return f"{alone:.0f} / {memory:.0%}" + (f" / {products:.0%}" if products else "")


def _total(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for group in groups.values() for key in group)
    return {key: sum(group.get(key, 0.0) for group in groups.values()) for key in keys}


if __name__ == "__main__":
    main()
