"""Thresholds by the clock of a GPU: of what calibrate finds within a budget, what is quickest at 1080p, batch 8.

    python benchmarks/accuracy_time.py --tasks pets,juggle [--budgets 0.75,1] [--search-seconds 60] --out FOLDER

For each task `calibrate`'s search goes on from the settings of benchmarks/results/accuracy/TASK.json, on the
calibration frames, to some budgets, and its choice by the clock follows (calibration/quickest.py): a frame of eight
images, enlarged, as gpu_accuracy.py times it. Then the test frames are played with what was chosen for each budget.
FOLDER/TASK_time.json has all that was timed and the rows of the test; FOLDER/TASK_best.json, for gpu_accuracy.py, are
the quickest thresholds that lose no more there than is accepted. FOLDER/TASK_trials.jsonl keeps the trials: a search
that was cut off goes on.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from benchmarks.curves.run import Run  # noqa: E402
from benchmarks.gpu_accuracy import FIRST, batches, size_of  # noqa: E402
from benchmarks.gpu_dense import timed  # noqa: E402
from benchmarks.tasks import TASKS, Task  # noqa: E402
from deltaconvert.calibration.quickest import quickest  # noqa: E402
from deltaconvert.calibration.search import GATES, Search  # noqa: E402
from deltaconvert.calibration.setting import Outcome, Setting  # noqa: E402
from deltaconvert.calibration.trials import Trials  # noqa: E402

WAY = "by time"


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
    options = parser.parse_args()
    vars(options).update(device="cuda", single=False, workers=1, eager=False)
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
    trials, clock = run.trials(), Clock(task, options)
    print(f"{task.name}: {len(trials.sites)} sites", flush=True)
    begin = [
        Setting.of(kept).padded(len(trials.sites))
        for name, kept in run.kept["settings"].items()
        if "ours" in name
    ]
    everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
    own = task.budget or trials(everywhere.times(task.spent)).loss
    facts: dict[str, Any] = {"task": task.name, "budget": own, "timed": [], "rows": []} | environment()
    facts["gpu"] = torch.cuda.get_device_name()
    file = options.out / f"{task.name}_time.json"
    chosen: dict[tuple[str, float], Setting] = {}
    tried: dict[Setting, Outcome] = {}  # for one budget counts for all
    for times in map(float, options.budgets.split(",")):
        search = Search(trials, own * times, time.monotonic() + options.search_seconds)
        search.tried = tried
        search.continued(begin, GATES, options.rounds)
        search.until = float("inf")

        def told(setting: Setting, times: float = times, search: Search = search) -> float:
            outcome = search.look(setting)
            row = {"times": times, "ms": clock(trials, setting), **vars(outcome), **setting.to_json()}
            facts["timed"].append(row)
            file.write_text(json.dumps(facts, indent=1) + "\n")
            placed = sum(share > 0 for share in setting.shares)
            told = f"{placed} thresholds, {len(setting.narrow)} narrow, {row['gate']}"
            print(
                f"{task.name} {row['ms']:.3f} ms, work {outcome.work:.4f}, loss {outcome.loss:.4f}, {told}",
                flush=True,
            )
            return row["ms"]

        setting, ms = quickest(search, told, GATES)
        chosen[WAY, times] = setting
        print(
            f"{task.name} {times:g}: {ms:.3f} ms, {search.look(setting)}, {len(search.tried)} tried",
            flush=True,
        )
    run.kept["rows"] = [row for row in run.kept["rows"] if row["way"] == "dense"]
    run.look_at_dense()
    run.play(trials, chosen)
    facts["rows"] = [row for row in run.kept["rows"] if row["way"] == WAY]
    file.write_text(json.dumps(facts, indent=1) + "\n")
    within = [row for row in facts["rows"] if row["loss"] <= task.accepted]
    if within:
        best = min(within, key=lambda row: clock(trials, chosen[WAY, row["strength"]]))
        thresholds = trials.thresholds(chosen[WAY, best["strength"]])
        thresholds.write(options.out / f"{task.name}_best.json", found=best)


class Clock:
    """The milliseconds of a frame of enlarged images of the calibration's part of the clip, by the CUDA backend; each
    setting once."""

    def __init__(self, task: Task, options: argparse.Namespace):
        self.model = copy.deepcopy(task.network).eval().to("cuda", torch.float16)
        numbers = range(min(task.calibration), max(task.calibration) + 1)
        self.frames = batches(task, numbers, options.batch, options.timed + FIRST, size_of(task))
        self.known: dict[Setting, float] = {}

    def __call__(self, trials: Trials, setting: Setting) -> float:
        if setting not in self.known:
            self.known[setting] = self._time(trials, setting)
            gc.collect()
        return self.known[setting]

    def _time(self, trials: Trials, setting: Setting) -> float:
        delta = deltaconvert.convert(self.model, self.frames[0], threshold=trials.thresholds(setting))
        for frame in self.frames[:FIRST]:
            delta(frame)
        (buffer,) = delta.frame_buffers()
        times, _, _ = timed(delta, self.frames[FIRST:], buffer.copy_)
        return statistics.median(times)


if __name__ == "__main__":
    main()
