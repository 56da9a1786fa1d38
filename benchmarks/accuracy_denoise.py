"""Denoise's thresholds by the clock, chosen by a rule that was written down first, on a CPU.

    python benchmarks/accuracy_denoise.py choose --out FILE
    python benchmarks/accuracy_denoise.py test --out FILE

The rule (12:30 on 2026-11-27, before anything of it was played). Candidates are gates with a threshold at the input
and none behind it: averages over 9x9 pixels and 4, 6, 8 or 12 frames, 24 or 32 pixels taken along, at once and
1.15 times the known threshold; that is of twelve frames, and the noise of a mean of n frames goes with 1/sqrt(n).
Enlarged frames of the calibration's range say what passes of 1080p, at the middle of the network's twenty layers. In
this order, the least first, candidates play the whole range, 250 frames in a row, every 25th of which is scored beside
the dense network. The first that loses LIMIT or less is the choice: the test may lose 0.1 dB, and a run as long as the
test's needs no more room than that. `test` plays it, and the known gate, on the 200 test frames and on the 195 behind
them, which nothing has been played on. What loses more than 0.1 dB in either does not count; then the known one stays.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy_gate import inputs_of, looked, played, psnr  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from benchmarks.tasks import TASKS, Task  # noqa: E402
from deltaconvert.gate import Gate, grown  # noqa: E402

KNOWN = (Gate(smooth=9, recent=12, peak=64.0, dilate=24), 0.01718419729471207)
RECENT, DILATE, TIMES = (4, 6, 8, 12), (24, 32), (1.0, 1.15)
LIMIT = 0.08  # dB
LARGE, SETTLED, COUNTED, MIDDLE = (1080, 1920), 24, 6, 10
RANGE, EVERY = range(100, 350), 25
TESTS = {"test": (range(400, 600), 10), "behind it": (range(600, 795), 10)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("choose", "test"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    with torch.no_grad():
        task = TASKS["denoise"](120, 200)
        task.network.eval()
        facts = {"choose": choose, "test": test}[options.what]
        for name, rows in facts(task, kept):
            kept[name] = rows
            options.out.write_text(json.dumps(kept | environment(), indent=1) + "\n")


def choose(task: Task, kept: dict[str, Any]) -> Any:
    gates = [
        (Gate(smooth=9, recent=recent, peak=64.0, dilate=dilate), KNOWN[1] * math.sqrt(12 / recent) * times)
        for recent, dilate, times in product(RECENT, DILATE, TIMES)
    ]
    large = inputs_of(task, range(RANGE[0], RANGE[0] + SETTLED + COUNTED), size=LARGE)[1]
    passing = sorted((passes(large, gate, threshold), told(gate, threshold)) for gate, threshold in gates)
    yield "passing", [{"enlarged": share, **gate} for share, gate in passing]
    del large
    pictures, frames = inputs_of(task, RANGE)
    dense, rows = psnr(task.network, pictures, frames, EVERY), []
    for _, gate in sorted(passing, key=lambda found: found[0]):
        row = row_of(task, pictures, frames, EVERY, gate, dense)
        rows.append(row)
        print(row, flush=True)
        yield "calibration", rows
        if row["loss"] <= LIMIT:
            yield "chosen", gate
            return


def test(task: Task, kept: dict[str, Any]) -> Any:
    for name, (numbers, every) in TESTS.items():
        pictures, frames = inputs_of(task, numbers)
        dense, rows = psnr(task.network, pictures, frames, every), []
        for gate in (kept["chosen"], told(*KNOWN)):
            rows.append(row_of(task, pictures, frames, every, gate, dense))
            print(name, rows[-1], flush=True)
            yield name, rows


def told(gate: Gate, threshold: float) -> dict[str, Any]:
    return {"gate": gate.to_json(), "threshold": threshold}


def passes(frames: Sequence[Tensor], gate: Gate, threshold: float) -> float:
    """The share of the pixels at the middle of the network, behind the frames in which averages settle."""
    masks = looked(frames, gate, threshold)
    found = [
        float(grown(mask, MIDDLE).float().mean()) for place, (_, mask) in enumerate(masks) if place >= SETTLED
    ]
    return sum(found) / len(found)


def row_of(
    task: Task,
    pictures: Sequence[Tensor],
    frames: Sequence[Tensor],
    every: int,
    gate: dict[str, Any],
    dense: float,
) -> dict[str, Any]:
    begin = time.monotonic()
    stored, work = played(task.network, looked(frames, Gate.of(gate["gate"]), gate["threshold"]))
    loss = dense - psnr(task.network, pictures, stored, every)
    return {**gate, "loss": loss, "work": work, "seconds": time.monotonic() - begin}


if __name__ == "__main__":
    main()
