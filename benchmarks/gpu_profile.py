"""Where a frame's time goes on a GPU: what each group of layers takes, the least it could take, and the gap.

    python benchmarks/gpu_profile.py --out FILE [--units resnet50:half:8,...] [--ncu 5,100] [--seconds 250]
    python benchmarks/gpu_profile.py table FILE

A group is the layers of one kind on maps of one size. Frames are those of gpu.py and run as usual: in one CUDA graph
whose kernels start early.

now      what a kernel adds to the chain, from the end of the kernel before it to its own end; these sum to the frame.
         Only idle time longer than any kernel waits for another is left out: torch's profiler causes it between the
         copy of a frame and its graph
floor    what its bytes or its operations take at the rate of a large copy or product (gpu.py)
alone    at the densities of --ncu: how long it takes when Nsight Compute runs it alone; `memory` and `products` are the
         shares of those rates that it reaches then

Units that FILE already holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_dense import ceilings
from benchmarks.gpu_floor import work_by_layer
from benchmarks.gpu_ncu import by_layer_alone, by_ncu
from benchmarks.gpu_record import Unit, here_and_now, markdown, read
from benchmarks.gpu_timeline import by_layer, prepared, timeline
from deltaconvert.nodes import operator_of
from deltaconvert.ops.fused import head_of

UNITS = (Unit("resnet50", "half", 8), Unit("hrnet_w32", "half", 32), Unit("mobilenetv2", "half", 8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("measure", "table"), default="measure")
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
    facts = read(options.out, "units")
    known = {Unit.of_row(row) for row in facts["units"]}
    began = time.perf_counter()
    for unit in (unit for unit in map(Unit.of, options.units.split(",")) if unit not in known):
        if time.perf_counter() - began > options.seconds:
            print(f"time is over before {unit}")
            break
        facts["units"].append(measure(unit, densities, under_ncu))
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(tables(facts))


@torch.no_grad()
def measure(unit: Unit, densities: Sequence[float], ncu: Sequence[float]) -> dict[str, Any]:
    """The time of a unit's kernels at each density, by group of layers."""
    limits = ceilings(unit.type)
    delta, frames, launches = prepared(unit)
    by_itself = by_ncu(unit, ncu) if ncu else {}
    groups_of, rows = Groups(delta), []
    for density in densities:
        events = timeline(delta, list(frames(density)))
        chain = by_layer(events, launches)
        groups = grouped(delta, groups_of, chain, limits)
        for name, found in by_layer_alone(by_itself.get(density, []), launches).items():
            group = groups.get(groups_of(name), {})  # a still frame skips some groups, but not under ncu
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
    """The group of each layer: its kind and the size of its map."""

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


def tables(facts: dict[str, Any]) -> str:
    """Markdown: for each unit `floor / now / gap` in microseconds, by group and density; then what ncu found."""
    parts = []
    for unit in facts["units"]:
        name = Unit(unit["network"], unit["type"], unit["batch"])
        rows = unit["rows"]
        cases = [f"{row['density']:.0%}" if row["density"] else "still" for row in rows]
        everything = [{**row["groups"], "all": _total(row["groups"])} for row in rows]
        every = max(everything, key=len)  # a still frame may skip groups
        body = [
            (group, str(found["kernels"]), *(_cell(groups.get(group)) for groups in everything))
            for group, found in every.items()
        ]
        parts.append(f"{name}, floor / now / gap:\n\n{markdown(('group', 'kernels', *cases), body)}")
        under_ncu = [
            (case, groups) for case, groups in zip(cases, everything, strict=True) if _ran_alone(groups)
        ]
        if under_ncu:
            body = [
                (group, *(_alone(groups.get(group, {}), unit) for _, groups in under_ncu)) for group in every
            ]
            head = ("group", *(case for case, _ in under_ncu))
            parts.append(f"{name}, alone / memory / products:\n\n{markdown(head, body)}")
    return "\n\n".join(parts)


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
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
