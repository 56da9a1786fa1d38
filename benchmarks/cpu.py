"""CPU speed: a converted network against the dense engines that a user could run, interleaved in one run.

    python benchmarks/cpu.py [--networks resnet50,mobilenetv2] [--densities 0,1,5,25,100] [--repeats 7] [--out FILE]
    python benchmarks/cpu.py merge A.json B.json --out benchmarks/results/cpu.json   joins runs of one machine
    python benchmarks/cpu.py table benchmarks/results/cpu.json                       the tables of the README
    python benchmarks/cpu.py plot benchmarks/results/cpu.json --out docs/speed.svg   the same as a picture

A box with fresh texture in every frame moves over a still textured background. All engines of engines.py get the same
frame one after the other, in an order that changes from frame to frame. There are two cases:

    exact      threshold 0, at every density: masks grow with depth
    truncated  a threshold at the activations that keeps masks from growing: the smallest share of each activation's
               magnitude at which a box of --truncate-at percent changes at most 20 % more of the last map than it
               covers

Peak memory is that of fresh processes (memory.py). Writes JSON with date, command, versions and processor.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
import model_zoo
from benchmarks.engines import ENGINES, Engine, Engines, Network, difference, prepare
from benchmarks.gpu_record import here_and_now, markdown
from deltaconvert.backends.cpu.native import loops
from deltaconvert.text import label, table
from deltaconvert.watching import measure

SIZES = {"resnet50": (1, 3, 720, 1280), "mobilenetv2": (1, 3, 720, 1280), "dncnn": (1, 1, 360, 480)}
WARM = 2  # the first frame is computed in full, the second is the first of its kind
PERCENTS = (0.1, 1000.0)  # the truncating threshold is searched in this range
GROWTH = 1.2  # so much growth is accepted: often no activation follows the last convolution


def main() -> None:
    options = arguments()
    if options.action == "merge":
        facts = merged([json.loads(file.read_text()) for file in options.files])
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        return
    if options.action != "measure":
        facts = json.loads(options.files[0].read_text())
        print(tables(facts)) if options.action == "table" else plot(facts, options.out)
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts: dict[str, Any] = {**environment(), "dtype": options.dtype, "networks": {}, "results": []}
    for name in options.networks.split(","):
        facts["networks"][name], rows = measure_network(name, options)
        facts["results"] += rows
        if options.out:  # after every network, so that an interruption costs one network and not an hour
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(tables(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("measure", "merge", "table", "plot"), default="measure")
    parser.add_argument("files", nargs="*", type=Path, help="of earlier runs; for table and plot one")
    parser.add_argument("--networks", default=",".join(SIZES))
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame in the box")
    parser.add_argument("--truncate-at", type=float, default=5, help="percent; 0 leaves the case out")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--size", help="HxW instead of the network's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave memory.py out")
    parser.add_argument("--profile", action="store_true", help="print where a frame of the last density goes")
    parser.add_argument("--out", type=Path, help="JSON to write; of plot the picture")
    options = parser.parse_args()
    if options.action != "measure" and not options.files:
        parser.error(f"{options.action} needs the JSON file of an earlier run")
    if options.action in ("merge", "plot") and options.out is None:
        parser.error(f"{options.action} needs --out FILE")
    return options


def measure_network(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(facts about the network and its engines, a row for each case and density)."""
    shape = shape_of(name, options.size)
    dtype = getattr(torch, options.dtype)
    model, base = network(name).to(dtype), torch.rand(shape).to(dtype)
    delta, milliseconds = measure.timed(deltaconvert.convert, model, base)
    engines = prepare(Network(model, delta.graph, base, options.threads), options.engines.split(","))
    for engine, reason in engines.skipped.items():
        print(f"{name}: {engine} is skipped: {reason}", flush=True)
    facts = {"shape": list(shape), "convert_seconds": milliseconds / 1e3, **engines.facts()}
    densities = [float(percent) / 100 for percent in options.densities.split(",") if percent]
    rows = [row(name, "exact", delta, engines, base, share, options.repeats) for share in densities]
    if options.profile and densities:
        before, *_, after = video(base, densities[-1], 4)
        profile(delta, before, after)
    if options.truncate_at:
        share = options.truncate_at / 100
        threshold = {"input": 0.0, "activation": f"{truncating(model, base, share):.3g}%", "gate": 0.0}
        facts["truncated"] = {"threshold": threshold, "chosen_at": share}
        delta = delta.with_thresholds(threshold, base)
        some = [share for share in densities if 0 < share < 1] or [share]
        rows += [row(name, "truncated", delta, engines, base, share, options.repeats) for share in some]
    if options.memory:
        facts["memory"] = memory(name, options)
    return facts, rows


def row(
    name: str,
    case: str,
    delta: deltaconvert.DeltaModel,
    engines: Engines,
    base: Tensor,
    density: float,
    repeats: int,
) -> dict[str, Any]:
    """Medians of `repeats` frames at one density."""
    runs: dict[str, Engine] = {**engines.ready, "delta": lambda frame: lambda: delta(frame)}
    times: dict[str, list[float]] = {key: [] for key in runs}
    works, changed, last, errors = [], [], [], []
    delta.reset()
    for number, frame in enumerate(video(base, density, WARM + repeats)):
        outputs = {}
        for key in rotated(list(runs), number):
            with torch.inference_mode():
                outputs[key], spent = measure.timed(runs[key](frame))
            times[key].append(spent)
        if number < WARM:
            continue
        works.append(delta.stats().work)
        changed.append(measure.input_density(delta))
        last.append(float(last_mask(delta).float().mean()))
        errors += [difference(outputs["delta"], outputs[key]) for key in engines.ready]
    medians = {key: statistics.median(values[WARM:]) for key, values in times.items()}
    best = min(engines.ready, key=lambda key: medians[key])
    work = statistics.median(works)
    print(
        f"{name} {case} {density:.0%}: {best} {medians[best]:.1f} ms, delta {medians['delta']:.1f} ms, "
        f"{medians[best] / medians['delta']:.2f}x",
        flush=True,
    )
    return {
        "network": name,
        "case": case,
        "density": density,
        "changed": statistics.median(changed),
        "changed_last": statistics.median(last),
        "dense_ms": medians[best],
        "best": best,
        "delta_ms": medians["delta"],
        "ratio": medians[best] / medians["delta"],
        "ratios": {key: medians[key] / medians["delta"] for key in engines.ready},
        "work": work,
        "bound": 1 / work if work else None,
        "error": max(errors),
        "medians_ms": medians,
    }


def rotated(keys: list[str], by: int) -> list[str]:
    by %= len(keys)
    return keys[by:] + keys[:by]


def last_mask(delta: deltaconvert.DeltaModel) -> Tensor:
    """The mask, bool (N, 1, H, W), of the last map that has more than one pixel."""
    return [mask for mask in delta.masks().values() if mask[0].numel() > 1][-1]


def grows(delta: deltaconvert.DeltaModel) -> bool:
    """Whether the last map changed beyond the pixels that the frame's changed pixels lie in."""
    frame, last = next(iter(delta.masks().values())), last_mask(delta)
    covered = F.adaptive_max_pool2d(frame.float(), last.shape[2:])
    return float(last.sum()) > GROWTH * float(covered.sum())


def truncating(model: nn.Module, base: Tensor, density: float) -> float:
    """The smallest activation threshold, in percent, at which the masks of a box do not grow."""
    delta = deltaconvert.convert(model, base, backend="reference")
    frames = list(video(base, density, WARM + 1))
    low, high = PERCENTS
    while high / low > 1.1:
        middle = (low * high) ** 0.5
        trial = delta.with_thresholds({"activation": f"{middle}%"}, base)
        for frame in frames:
            trial(frame)
        low, high = (middle, high) if grows(trial) else (low, middle)
    return high


def memory(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of fresh processes, see memory.py."""
    script = str(Path(__file__).with_name("memory.py"))
    command = [sys.executable, script, name, "--json", "--threads", str(options.threads)]
    command += ["--size", options.size] if options.size else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def shape_of(name: str, size: str | None = None) -> tuple[int, ...]:
    """N C H W of a network's frames, by default as SIZES or model_zoo say; size: HxW instead."""
    batch, channels, *own = SIZES[name] if name in SIZES else (1, *model_zoo.recipe(name).input_size)
    return batch, channels, *(map(int, size.split("x")) if size else own)


def network(name: str) -> nn.Module:
    return model_zoo.create(name, seed=0)


def video(base: Tensor, density: float, frames: int) -> Iterator[Tensor]:
    """A box of `density` of the frame with new texture in every frame; it moves by two pixels a frame."""
    draw = torch.Generator().manual_seed(0)
    height, width = base.shape[2:]
    h, w = round(height * density**0.5), round(width * density**0.5)
    yield base.clone()
    for index in range(1, frames):
        frame = base.clone()
        y, x = min((height - h) // 3, height - h), min((width - w) // 3 + 2 * index, width - w)
        frame[:, :, y : y + h, x : x + w] = torch.rand(*base.shape[:2], h, w, generator=draw)
        yield frame


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


def environment() -> dict[str, Any]:
    """measure.environment() of this script, its commit, and what else a CPU's times depend on."""
    command, capability = shlex.join(["python", *sys.argv]), torch.backends.cpu.get_cpu_capability()
    numba = version("numba") if loops.FOUND else None  # see backends/cpu/native/
    own = {"command": command, "commit": here_and_now()["commit"], "capability": capability, "numba": numba}
    return {**measure.environment(), **own, "core": core()}


def core() -> str | None:
    """LLVM's name of the processor, as many of one maker call themselves alike; it comes with numba."""
    if not loops.FOUND:
        return None
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


# ---- what JSON files say: in one file, as tables and as a picture


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs joined into one record; rows keep the order of the files."""
    alike = ("deltaconvert", "torch", "processor", "threads")
    versions = {(*(run[key] for key in alike), run.get("dtype")) for run in runs}
    if len(versions) > 1:
        raise SystemExit(f"these runs are of different machines or versions: {versions}")
    networks: dict[str, Any] = {}
    for run in runs:
        for name, facts in run["networks"].items():
            networks[name] = networks.get(name, {}) | facts
    commands = "; ".join(dict.fromkeys(run["command"] for run in runs))
    rows = [row for run in runs for row in run["results"]]
    return {**runs[0], "command": commands, "networks": networks, "results": rows}


def tables(facts: dict[str, Any]) -> str:
    """Markdown: how many times faster than the best dense engine, the engines themselves, peak memory."""
    cases = _cases(facts)
    densities = sorted({row["density"] for row in facts["results"]})
    head = ("network", "case", "best dense", *(f"{d:.0%}" if d else "still" for d in densities))
    body = []
    for (name, case), rows in cases.items():
        found = {row["density"]: f"{row['ratio']:.3g}x" for row in rows}
        best = min(rows, key=lambda row: row["dense_ms"])
        fastest = f"{best['best']}, {statistics.median(row['dense_ms'] for row in rows):.0f} ms"
        body.append((_title(facts, name), case, fastest, *(found.get(d, "") for d in densities)))
    parts = [markdown(head, body)]
    names = list(dict.fromkeys(key for row in facts["results"] for key in row["ratios"]))
    body = []
    for (name, case), rows in cases.items():
        for row in rows:
            each = (
                f"{row['medians_ms'][key]:.0f} ms, {row['ratios'][key]:.3g}x" if key in row["ratios"] else ""
                for key in names
            )
            shares = (f"{row[key]:.1%}" for key in ("density", "changed_last", "work"))
            body.append((name, case, *shares, f"{row['delta_ms']:.1f} ms", *each))
    head = ("network", "case", "box", "last map", "work", "delta", *names)
    parts.append(markdown(head, body))
    body = [
        (
            name,
            *(
                f"{kind['above_torch_mb']:.0f} MB"
                for kind in (own["memory"]["dense"], own["memory"]["delta"])
            ),
        )
        for name, own in facts["networks"].items()
        if "memory" in own
    ]
    if body:
        parts.append(markdown(("peak memory above torch", "dense", "delta"), body))
    return "\n\n".join(parts)


def plot(facts: dict[str, Any], out: Path) -> None:
    from deltaconvert.drawing.plot import Panel, draw

    panels = []
    for (name, case), rows in _cases(facts).items():
        if case == "exact":
            dense = {key: [row["medians_ms"][key] for row in rows] for key in rows[0]["ratios"]}
            densities, delta, works = ([row[key] for row in rows] for key in ("density", "delta_ms", "work"))
            panels.append(Panel(_title(facts, name), densities, delta, dense, works))
    draw(panels, out)


def _cases(facts: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(network, case) -> its rows."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in facts["results"]:
        found.setdefault((row["network"], row["case"]), []).append(row)
    return found


def _title(facts: dict[str, Any], name: str) -> str:
    height, width = facts["networks"][name]["shape"][2:]
    return f"{name} {width}x{height}"


if __name__ == "__main__":
    main()
