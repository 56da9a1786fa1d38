"""Where a frame's time goes on a GPU: every step of a converted network by itself, beside its operator in torch.

    python benchmarks/steps.py --units resnet50:half:1,unet:half:8 [--densities 5,100] [--dense] [--out FILE]

A step is timed in a CUDA graph that launches it several times, on the lists that a frame of benchmarks/gpu.py's video
left behind. This is its cost within a chain, with its weights in the cache. Torch's time is that of the operator alone,
without what is fused behind it, on the whole map. Prints microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
from benchmarks.gpu import model_and_frame
from benchmarks.gpu_frames import video
from benchmarks.gpu_record import Unit, environment
from benchmarks.launches import milliseconds
from deltaconvert.backends.cuda.means import InBoxes
from deltaconvert.backends.cuda.tuning import seconds_of
from deltaconvert.nodes import is_delta, sparsify
from deltaconvert.ops.fused import head_of
from deltaconvert.text import table

FRAMES = 4


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", required=True, help="network:type:batch, ...")
    parser.add_argument("--densities", default="5,100", help="percent of the frame in the box")
    parser.add_argument("--dense", action="store_true", help="time torch's operators too")
    parser.add_argument("--rows", type=int, default=30, help="of the printed table, the slowest steps first")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts: dict[str, Any] = {**environment(), "results": []}
    for unit in map(Unit.of, options.units.split(",")):
        model, base = model_and_frame(unit)
        delta = deltaconvert.convert(model, base)
        delta(base)
        for density in map(float, options.densities.split(",")):
            rows = steps_of(delta, base, density / 100, options.dense)
            frame = milliseconds(delta, base, f"{density}%", 10)
            facts["results"].append(
                {**unit._asdict(), "density": density / 100, "graph_ms": frame, "steps": rows}
            )
            print(
                f"{unit} at {density:g} %: graph {frame * 1e3:.0f} us, steps {sum(r['us'] for r in rows):.0f}"
            )
            rows = sorted(rows, key=lambda row: -row["us"])[: options.rows]
            told = [[f"{v:.1f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
            print(table(list(rows[0]), told), flush=True)
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
        del delta


def steps_of(delta: Any, base: torch.Tensor, density: float, dense: bool) -> list[dict[str, Any]]:
    """A row for each step, and one for each launch that makes lists."""
    for frame in video(base, density, FRAMES):
        delta(frame)
    program, device = delta._program, base.device
    nodes = [
        node for node in program.plan.graph.graph.nodes if is_delta(node) and node.target is not sparsify
    ]
    rows: list[dict[str, Any]] = []
    for node, step in zip(nodes, program._operators, strict=True):
        inner = step._step if isinstance(step, InBoxes) else step
        n, channels, height, width = inner.edge.values.shape
        listed = int(inner.candidates.count)
        path = node.meta.get("path", node.name)
        row = _row(path, kernel_of(step, inner), n * height * width, listed, microseconds(of(step), device))
        row["shape"] = f"{inner.inputs[0].values.shape[1]}>{channels} {height}x{width}"
        if dense:
            operator = head_of(inner.operator)
            inputs = [source.values for source in inner.inputs[: _inputs(inner.operator)]]
            row["torch"] = microseconds(partial(operator, *inputs), device)
        rows.append(row)
    for launch in (launch for behind in program._backend._behind.values() for launch in behind._launches):
        size = "{}x{}".format(*launch._listings[0].marks.size)
        kernel = f"{len(launch._listings)} spread{'' if launch._then_list else ' + list'}"
        row = _row("lists", kernel, 0, 0, microseconds(again(program, launch), device))
        rows.append({**row, "shape": size, **({"torch": 0.0} if dense else {})})
    return rows


def _row(path: str, kernel: str, pixels: int, listed: int, us: float) -> dict[str, Any]:
    return {"step": path, "kernel": kernel, "share": listed / pixels * 100 if pixels else 0.0, "us": us}


def _inputs(operator: Any) -> int | None:
    return getattr(operator, "head_inputs", None)


def of(step: Any) -> Callable[[], Any]:
    if isinstance(step, InBoxes):
        return lambda: (step._boxes.run_alone(), step._step.run_alone())
    return step.run_alone  # type: ignore[no-any-return]


def kernel_of(step: Any, inner: Any) -> str:
    launch = getattr(inner, "launch", None)
    if launch is None:
        return f"torch {type(head_of(inner.operator)).__name__}"
    head = launch._kept[0]
    tile = [str(head.macros[k]) for k in ("BM", "BN", "STAGES", "SPLIT", "WHOLE", "KH") if k in head.macros]
    return f"{'boxes ' if step is not inner else ''}{head.source.removesuffix('.cu')} {'x'.join(tile)}"


def again(program: Any, launch: Any) -> Callable[[], None]:
    """Makes lists that can be timed repeatedly: a copy, which takes 2 us itself, first sets their counts to 0."""
    backend = program._backend
    counters = backend._counters[: backend._used]
    before = counters.clone()
    for listing in launch._listings:
        for counts in (listing.listed.count, listing.marks.changed):
            before[counts.storage_offset() :][: counts.numel()] = 0

    def run() -> None:
        counters.copy_(before)
        launch.run(backend)

    return run


def microseconds(run: Callable[[], Any], device: torch.device) -> float:
    return seconds_of(run, device) * 1e6


if __name__ == "__main__":
    main()
