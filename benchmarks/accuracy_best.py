"""Picks from what accuracy.py has played the thresholds that do the least work at the accepted loss.

    python benchmarks/accuracy_best.py [--tasks pets,juggle] [--fewer] [--play pets=35] --out FOLDER

Reads benchmarks/results/accuracy/TASK.json and writes FOLDER/TASK_best.json for gpu_accuracy.py. Shares become
thresholds by the magnitudes of maps on the calibration frames; no test frame is played.

--fewer: comparing with a threshold takes time, so some save less than they cost. Each FOLDER/TASK-COUNT_best.json lacks
the COUNT thresholds that save the least work on the calibration frames, in steps of an eighth, as calibrate(by="time")
leaves them out; FOLDER/TASK_fewer.json has the work and loss of each. --play PETS=35: adds to the same file the test
frames, played without that many thresholds.
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

from benchmarks.curves.run import Run, played_here
from benchmarks.tasks import TASKS
from deltaconvert.calibration.trials import Trials


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="pets,highway,juggle,denoise,upscale")
    parser.add_argument("--calibration", type=int, default=24, help="frames")
    parser.add_argument("--frames", type=int, default=200, help="of the test")
    parser.add_argument("--fewer", action="store_true")
    parser.add_argument("--play", default="", help="TASK=COUNT,...")
    parser.add_argument("--out", type=Path, required=True)
    options = played_here(parser.parse_args())
    options.out.mkdir(parents=True, exist_ok=True)
    counts = {
        task: int(count)
        for task, _, count in (part.partition("=") for part in options.play.split(",") if part)
    }
    for name in options.tasks.split(","):
        shutil.copy(ROOT / "benchmarks/results/accuracy" / f"{name}.json", options.out)
        run = Run(TASKS[name](options.calibration, options.frames), options, until=float("inf"))
        trials = run.trials()
        run.keep_best(trials)
        file = options.out / f"{name}_fewer.json"
        if options.fewer:
            file.write_text(json.dumps(fewer(run, trials), indent=1) + "\n")
        if name in counts:
            facts = json.loads(file.read_text())
            facts["played"] = played(run, trials, facts, counts[name])
            file.write_text(json.dumps(facts, indent=1) + "\n")


def fewer(run: Run, trials: Trials) -> dict[str, Any]:
    found = run.best(trials)
    assert found is not None, f"{run.task.name}: no thresholds lose so little"
    row, best = found
    placed = [
        place for place, share in enumerate(best.shares) if share and trials.sites[place].kind != "input"
    ]
    works = {place: trials(best.at(place, 0.0)).work for place in placed}
    order = sorted(placed, key=lambda place: works[place])
    facts: dict[str, Any] = {
        "of": row,
        "order": [trials.sites[place].names[0] for place in order],
        "without": [],
    }
    for count in sorted({len(order) * eighth // 8 for eighth in range(9)}):
        setting = best.without(order[:count])
        outcome = trials(setting)
        facts["without"].append({"count": count, "work": outcome.work, "loss": outcome.loss})
        trials.thresholds(setting).write(run.folder / f"{run.task.name}-{count}_best.json", found=row)
    return facts


def played(run: Run, trials: Trials, facts: dict[str, Any], count: int) -> dict[str, Any]:
    """The row of the test frames, played without the first `count` thresholds."""
    found = run.best(trials)
    assert found is not None
    places = {site.names[0]: place for place, site in enumerate(trials.sites)}
    setting = found[1].without([places[name] for name in facts["order"][:count]])
    run.look_at_dense()
    run.play(trials, {("without", float(count)): setting})
    (row,) = (row for row in run.kept["rows"] if row["way"] == "without")
    return row


if __name__ == "__main__":
    main()
