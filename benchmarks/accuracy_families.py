"""Chooses among families of settings by a GPU's clock; a family is a setting and multiples of its thresholds.

    python benchmarks/accuracy_families.py play FAMILIES --task pets --out FOLDER
    python benchmarks/accuracy_families.py choose FOLDER --task pets --known THRESHOLDS

FAMILIES has for each task a list of settings with `factors`. `play` multiplies all thresholds of a setting with each
factor and plays the test frames, which gives a curve. From each family it keeps the largest factor that, like all
smaller ones, loses no more than is accepted: FOLDER/TASK-N.json. `choose` times these on the calibration's part of the
clip, enlarged, at batch 8. The quickest that loses at most a tenth more there than the known thresholds becomes
FOLDER/TASK_best.json, for gpu_accuracy.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy_time import Clock
from benchmarks.curves.run import Run, played_on
from benchmarks.tasks import TASKS
from deltaconvert.calibration.setting import Setting

# Frames by whose magnitudes shares become thresholds; FEW for the other tasks.
CALIBRATION = {"denoise": 120, "upscale": 45}
FEW = 24
MORE = 1.1  # a choice loses at most so many times what the known thresholds lose in enlarged frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    playing = commands.add_parser("play")
    playing.add_argument("families", type=Path)
    playing.add_argument("--out", type=Path, required=True)
    playing.set_defaults(run=play)
    choosing = commands.add_parser("choose")
    choosing.add_argument("out", type=Path)
    choosing.add_argument("--known", type=Path, required=True)
    choosing.set_defaults(run=choose)
    for command in (playing, choosing):
        command.add_argument("--task", choices=tuple(TASKS), required=True)
    options = parser.parse_args()
    with torch.no_grad():
        options.run(options)


def play(options: argparse.Namespace) -> None:
    options, name = played_on("cuda", options), options.task
    families = json.loads(options.families.read_text())[name]
    run = Run(TASKS[name](CALIBRATION.get(name, FEW), 200), options, until=float("inf"))
    trials = run.trials()
    settings = {
        (f"family {number}", factor): Setting.of(family).times(factor)
        for number, family in enumerate(families)
        for factor in family["factors"]
    }
    run.look_at_dense()
    run.play(trials, settings, replay=True)
    rows = {(row["way"], row["strength"]): row for row in run.kept["rows"]}
    for number, family in enumerate(families):
        curve = [rows[f"family {number}", factor] for factor in sorted(family["factors"])]
        best = highest(curve)
        if best is not None:
            thresholds = trials.thresholds(settings[best["way"], best["strength"]])
            thresholds.write(options.out / f"{name}-{number}.json", found=best)


def highest(curve: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last row before the first that loses more than is accepted; a lucky row after that does not count."""
    best = None
    for row in curve:
        if row["loss"] > row["accepted"]:
            break
        best = row
    return best


def choose(options: argparse.Namespace) -> None:
    name = options.task
    task = TASKS[name](CALIBRATION.get(name, FEW), 200)
    clock = Clock(task, argparse.Namespace(batch=8, timed=10))
    files = [options.known, *sorted(options.out.glob(f"{name}-*.json"))]
    seen = {file: clock(file) for file in files}
    for file, found in seen.items():
        print(f"{file.name}: {found.ms:.3f} ms, lost {found.lost:.4f}", flush=True)
    limit = MORE * seen[options.known].lost
    within = [file for file in files if seen[file].lost <= limit]
    shutil.copy(min(within, key=lambda file: seen[file].ms), options.out / f"{name}_best.json")


if __name__ == "__main__":
    main()
