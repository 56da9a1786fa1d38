"""How close runs of cpu.py come to the bound set by their work: dense time x share of the work / delta time.

    python benchmarks/cpu_bounds.py benchmarks/results/cpu.json [MORE.json ...]

The share of the work is that of the multiply-accumulates at pixels that can change in an exact conversion. Tiles
compute more than these, so the share is taken from the run that computed least, among all given runs of the same
network, size and box on any machine. Dense is the fastest engine of the row. Prints Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_record import markdown

Key = tuple[str, tuple[int, ...], float]  # network, N C H W, share of the frame in the box


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="that cpu.py wrote")
    print(table([json.loads(file.read_text()) for file in parser.parse_args().files]))


def table(runs: Sequence[dict[str, Any]]) -> str:
    least = shares(runs)
    boxes = sorted({density for _, _, density in least})
    lines: dict[tuple[str, ...], dict[float, str]] = {}
    for run in runs:
        core = f" ({run['core']})" if run.get("core") else ""
        processor = f"{run['processor']}{core}, {run['capability']}"
        about = processor, run.get("dtype", "float32"), str(run["threads"])
        for key, row in exact(run):
            reached = row["ratio"] * least[key]
            text = f"{row['ratio']:.2f}x, {reached:.0%}" if reached else f"{row['ratio']:.0f}x"
            lines.setdefault((key[0], *about), {})[row["density"]] = text
    head = ("network", "processor", "type", "threads", *(f"{box:.0%}" if box else "still" for box in boxes))
    return markdown(
        head, [(*about, *(found.get(box, "") for box in boxes)) for about, found in lines.items()]
    )


def shares(runs: Sequence[dict[str, Any]]) -> dict[Key, float]:
    """The least share of the work that any run computed, by network, size and box."""
    least: dict[Key, float] = {}
    for run in runs:
        for key, row in exact(run):
            least[key] = min(row["work"], least.get(key, 1.0))
    return least


def exact(run: dict[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The rows of an exact conversion."""
    for row in run["results"]:
        if row["case"] == "exact":
            shape = tuple(run["networks"][row["network"]]["shape"])
            yield (row["network"], shape, row["density"]), row


if __name__ == "__main__":
    main()
