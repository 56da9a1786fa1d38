"""Chooses thresholds by a GPU's clock: the quickest at 1080p and batch 8 that calibrate finds within a budget.

    python benchmarks/accuracy_time.py --tasks pets,juggle [--budgets 0.75,1] [--search-seconds 60] --out FOLDER

For each task, `calibrate`'s search continues from the settings of benchmarks/results/accuracy/TASK.json on the
calibration frames, towards several budgets. Then calibration/quickest.py chooses by time: it times a frame of eight
enlarged images, as gpu_accuracy.py does, and rules out what loses more in these than the known thresholds. Last, the
test frames are played with the choice for each budget. FOLDER/TASK_time.json has everything that was timed and the rows
of the test. FOLDER/TASK_best.json, for gpu_accuracy.py, has the quickest thresholds that lose no more than is accepted
in the test. FOLDER/TASK_trials.jsonl keeps the trials, so that an interrupted search can continue.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.curves.run import Run, played_on
from benchmarks.gpu_accuracy import AVERAGED, FIRST, batches, loss, played, size_of
from benchmarks.tasks import TASKS, Task
from deltaconvert.calibration.quickest import quickest
from deltaconvert.calibration.search import GATES, TRIES, Search
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.thresholds import Thresholds

WAY = "by time"
SETTLED = FIRST + AVERAGED * max(gate.recent for gate in GATES)  # frames, whatever gate is timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="pets,highway,juggle,denoise,upscale")
    parser.add_argument("--budgets", default="1", help="times the task's own")
    parser.add_argument("--calibration", type=int, default=24, help="frames")
    parser.add_argument("--frames", type=int, default=200, help="of the test")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--timed", type=int, default=10, help="frames")
    parser.add_argument("--search-seconds", type=float, default=60.0, help="for each budget")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    options = played_on("cuda", parser.parse_args())
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.tasks.split(","):
        kept = options.out / f"{name}.json"
        if not kept.exists():
            shutil.copy(ROOT / "benchmarks/results/accuracy" / kept.name, kept)
        with torch.no_grad():
            of_task(TASKS[name](options.calibration, options.frames), options)
        gc.collect()
        torch.cuda.empty_cache()


def of_task(task: Task, options: argparse.Namespace) -> None:
    run = Run(task, options, until=float("inf"))
    trials = run.trials()
    race = Race(run, trials, Clock(task, options))
    chosen = {(WAY, times): race.to(times) for times in map(float, options.budgets.split(","))}
    run.kept["rows"] = [row for row in run.kept["rows"] if row["way"] == "dense"]
    run.look_at_dense()
    run.play(trials, chosen)
    rows = race.facts["rows"] = [row for row in run.kept["rows"] if row["way"] == WAY]
    race.write()
    within = [row for row in rows if row["loss"] <= task.accepted]
    if within:
        best = min(within, key=lambda row: race.seen[chosen[WAY, row["strength"]]].ms)
        thresholds = trials.thresholds(chosen[WAY, best["strength"]])
        thresholds.write(options.out / f"{task.name}_best.json", found=best)


@dataclass(frozen=True)
class Seen:
    """ms: of a frame of enlarged images. lost: relative L2 of the task's features in it."""

    ms: float
    lost: float


class Race:
    """The quickest setting for each budget.

    A setting only counts if it loses no more in enlarged frames than the known setting with the least work does. A
    gate's windows cover less of an enlarged picture; without this rule, gates that miss small things there would win.
    """

    def __init__(self, run: Run, trials: Trials, clock: Clock):
        self.run, self.trials, self.clock, task = run, trials, clock, run.task
        kept = run.kept["settings"].items()
        self.begin = [Setting.of(found).padded(len(trials.sites)) for name, found in kept if "ours" in name]
        everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
        self.own = task.budget or trials(everywhere.times(task.spent)).loss
        self.facts: dict[str, Any] = {"task": task.name, "budget": self.own, "timed": [], "rows": []}
        self.facts |= environment() | {"gpu": torch.cuda.get_device_name()}
        self.tried: dict[Setting, Outcome] = {}  # what was timed for one budget counts for all
        self.seen: dict[Setting, Seen] = {}
        self.start = time.monotonic()

    def write(self) -> None:
        file = self.run.folder / f"{self.run.task.name}_time.json"
        file.write_text(json.dumps(self.facts, indent=1) + "\n")

    def to(self, times: float) -> Setting:
        options = self.run.options
        search = Search(self.trials, self.own * times)
        search.tried = self.tried
        known = search.scaled(self.begin, TRIES, start=1.5)
        least = min(filter(search.fits, known), key=lambda setting: search.look(setting).work, default=None)
        if least is None:
            sys.exit(
                f"{self.run.task.name}: no known setting scales to {times:g} times the budget; try another"
            )
        limit = self.look(search, times, least).lost
        search.until = time.monotonic() + options.search_seconds
        search.continued([*self.begin, *known], GATES, options.rounds)
        search.until = math.inf

        def clock(setting: Setting) -> float:
            seen = self.look(search, times, setting)
            return seen.ms if seen.lost <= limit else math.inf

        setting, ms = quickest(search, clock, GATES)
        print(f"{self.run.task.name} {times:g}: {ms:.3f} ms of {len(self.tried)} tried", flush=True)
        return setting if ms < self.seen[least].ms else least

    def look(self, search: Search, times: float, setting: Setting) -> Seen:
        if setting not in self.seen:
            self.seen[setting] = seen = self.clock(self.trials.thresholds(setting))
            row = {"times": times, **vars(seen), **vars(search.look(setting)), **setting.to_json()}
            self.facts["timed"].append(row)
            self.write()
            self._tell(row)
        return self.seen[setting]

    def _tell(self, row: dict[str, Any]) -> None:
        placed = sum(share > 0 for share in row["shares"])
        print(
            f"{time.monotonic() - self.start:.0f} s: {row['ms']:.3f} ms, lost {row['lost']:.4f} there, "
            f"work {row['work']:.4f}, loss {row['loss']:.4f}, {placed} thresholds, {len(row['narrow'])} narrow, "
            f"weighted {row['weighted']}, {row['gate']}",
            flush=True,
        )


class Clock:
    """Thresholds on enlarged images of the calibration's part of the clip, by the CUDA backend."""

    def __init__(self, task: Task, options: argparse.Namespace):
        self.task = task
        self.model = copy.deepcopy(task.network).eval().to("cuda", torch.float16)
        numbers = range(min(task.calibration), max(task.calibration) + 1)
        self.frames = batches(task, numbers, options.batch, options.timed + SETTLED, size_of(task))

    def __call__(self, thresholds: Thresholds | Path) -> Seen:
        delta = deltaconvert.convert(self.model, self.frames[0], threshold=thresholds)
        times, _ = played(delta, self.frames, SETTLED)
        delta.reset()
        lost = loss(self.task, delta, self.model, self.frames)
        del delta
        gc.collect()
        return Seen(statistics.median(times), lost)


if __name__ == "__main__":
    main()
