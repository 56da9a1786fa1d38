"""Checks what calibration found on a long run of frames before the test frames, and keeps what still scores.

    python benchmarks/accuracy_check.py --task bottle --out FOLDER

Run it after `accuracy.py --tasks bottle [--tried] --out FOLDER`. Calibration finds thresholds by a smooth metric on a
few short runs of frames, and a classifier's answers need not follow that metric. This script plays all frames between
those of the calibration, none of the test, and takes the task's own score on them. For each way, and for each of LEVELS
times the accepted loss, the candidate that does the least work and loses no more than that goes to the test: the rows
`ours checked` and `paper checked`. On a processor the cpu backend plays, and a candidate of ours is abandoned as soon
as it cannot be chosen any more. A second run continues where the first one stopped.

Candidates of the paper: what its procedure found for each budget, also with all thresholds multiplied by common
factors. Candidates of ours: the paper's, since our search begins with them too; what our search found for each budget,
with the same factors; with --tried, whatever did the least work for its loss under each gate; and the paper's layers
under each gate, since the search combines its settings with the paper's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.curves import host
from benchmarks.curves.run import Run, between, played_on
from benchmarks.tasks import TASKS
from deltaconvert.calibration.search import GATES
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate

FACTORS = (0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)  # of all thresholds of a setting
# For the paper's layers under each gate: the input's share, and the factor of their thresholds.
INPUT, HIGHER = 0.03, (1.0, 3.0)
LEVELS = (0.5, 1.0, 2.0, 4.0)  # times the accepted loss
APART = 0.06  # two candidates of one gate differ by at least this share of the work
Candidates = dict[tuple[str, float], Setting]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1e9, help="then no more candidates are played")
    parser.add_argument(
        "--choose", action="store_true", help="of the candidates that were played so far; no more are"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with torch.no_grad():
        check(played_on(options.device, options))


def check(options: argparse.Namespace) -> None:
    task = TASKS[options.task](options.calibration, options.frames)
    held = argparse.Namespace(**{**vars(options), "out": options.out / "checked"})
    until = time.monotonic() + options.seconds
    rehearsal = Run(replace(task, test=between(task.calibration)), held, until)
    run = Run(task, options, math.inf)
    trials = run.trials()
    candidates = candidates_of(run, trials)
    print(f"{len(candidates)} candidates on {len(rehearsal.task.test)} frames", flush=True)
    if not options.choose:
        rehearsal.kept["noise"] = []  # not used here
        rehearsal.look_at_dense()
        if not played(rehearsal, trials, candidates):
            print("the time was over before all were played: run it again, it goes on from there", flush=True)
            return
    forget_earlier(run.kept)
    run.look_at_dense()
    chosen: Candidates = {}
    for (way, level), row in best_of(rehearsal.kept["rows"]).items():
        setting = chosen[way, level] = candidates[row["way"], row["strength"]]
        run.kept["settings"][f"{way} {level:g}"] = setting.to_json() | {"on the frames between": row}
        print(f"{way} {level:g}: work {row['work']:.4f}, loss {row['loss']:.4f} there", flush=True)
    if run.device.type == "cpu":
        host.play(run, trials, chosen)
    else:
        run.play(trials, chosen)
    run.keep_best(trials)


def played(run: Run, trials: Trials, candidates: Candidates) -> bool:
    """Plays all candidates; whether it got to the end.

    On a processor, the paper's first, since its rows are candidates of both ways; then ours, as
    far as one can still have less work than what is chosen."""
    if run.device.type != "cpu":
        run.play(trials, candidates, replay=True)
        return len(run.kept["rows"]) > len(candidates)
    theirs = {place: setting for place, setting in candidates.items() if place[0] == "paper"}
    if not host.play(run, trials, theirs):
        return False
    for place in (place for place in candidates if place not in theirs):
        if not host.play(run, trials, {place: candidates[place]}, to_beat(run.kept["rows"])):
            return False
    return True


def to_beat(rows: Sequence[dict]) -> float:
    """The least work of ours at the lowest level; at the other levels it cannot be more."""
    chosen = best_of(rows)
    return chosen["ours checked", LEVELS[0]]["work"] if ("ours checked", LEVELS[0]) in chosen else math.inf


def forget_earlier(kept: dict) -> None:
    """Remove what an earlier run of this script chose from fewer candidates."""
    kept["rows"] = [row for row in kept["rows"] if "checked" not in row["way"]]
    kept["settings"] = {name: found for name, found in kept["settings"].items() if "checked" not in name}


def candidates_of(run: Run, trials: Trials) -> Candidates:
    paper, mine = (searched(run, trials, way) for way in ("paper", "ours"))
    file = run.folder / f"{run.task.name}_tried.json"
    tried = json.loads(file.read_text()) if file.exists() else []
    inputs = [place for place, site in enumerate(trials.sites) if site.kind == "input"]
    found = {"paper": higher_and_lower(paper), "ours": [*higher_and_lower(mine), *ours(tried, paper, inputs)]}
    return {(way, n): setting for way, some in found.items() for n, setting in enumerate(some)}


def searched(run: Run, trials: Trials, way: str) -> list[Setting]:
    """What the searches of one way found, without what this script chose."""
    names = [name for name in run.kept["settings"] if name.startswith(way) and "checked" not in name]
    return [Setting.of(run.kept["settings"][name]).padded(len(trials.sites)) for name in names]


def higher_and_lower(found: Sequence[Setting]) -> list[Setting]:
    return [setting.times(factor) for setting in found for factor in FACTORS]


def ours(tried: Sequence[dict], paper: Sequence[Setting], inputs: Sequence[int]) -> list[Setting]:
    """For each gate, the settings that no other beats in both loss and work, at least APART in work from each other;
    and the paper's layers, as they are and higher, under each gate."""
    known: dict[Gate, list[dict]] = {}
    for trial in tried:
        known.setdefault(Gate.of(trial["gate"]), []).append(trial)
    found = []
    for trials in known.values():
        least = math.inf
        for trial in sorted(trials, key=lambda trial: trial["loss"]):
            if trial["work"] < least - APART:
                least = trial["work"]
                found.append(Setting.of(trial))
    for setting, factor, gate in itertools.product(paper, HIGHER, GATES):
        gated = replace(setting.times(factor), gate=gate)
        for place in inputs:
            gated = gated.at(place, INPUT)
        found.append(gated)
    return found


def best_of(rows: Sequence[dict]) -> dict[tuple[str, float], dict]:
    """For each way and level the row with the least work; a row that wins at several levels is listed once."""
    found: dict[tuple[str, float], dict] = {}
    for way, mine in (("ours", ("ours", "paper")), ("paper", ("paper",))):
        seen: list[dict] = []
        for level in LEVELS:
            within = [row for row in rows if row["way"] in mine and row["loss"] <= level * row["accepted"]]
            row = min(within, key=lambda row: row["work"], default=None)
            if row is not None and row not in seen:
                seen.append(row)
                found[f"{way} checked", level] = row
    return found


if __name__ == "__main__":
    main()
