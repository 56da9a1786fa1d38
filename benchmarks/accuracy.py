"""How much work is saved for how much accuracy: trained networks on real clips of ../shared/data.

    python benchmarks/accuracy.py --out FOLDER [--tasks pets,bottle] [--device cuda] [--frames 200] [--seconds 300]

Each task has one row for each way of saving work and each strength. A row has the share of a dense frame's
multiply-accumulates, counted by the reference backend's masks, and the task's score on the test frames: against the
truth where there is one, otherwise against the dense network. `ours` and `paper` are calibrated by the same metric to
the same budgets, which give their curves; every other way has a strength of its own. Rows are written to
FOLDER/TASK.json as they are measured, thresholds for convert(threshold=...) to FOLDER/TASK_WAY.json. A second run
continues where the first one stopped.

The rule, written down before any test frame was played: both ways see the same calibration frames and are judged by
the same smooth metric. Their budgets are multiples of what one threshold of `spent` for all layers costs (restoration:
of the accepted loss, in dB), up to where they lose more than is accepted. Gates, steps and everything else that is
chosen follow from calibration frames. What a score counts follows from the dense network alone (see Task). To try out
choices, `--rehearse` plays frames between those of the calibration instead of the test frames.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.curves.calibrated import calibrated
from benchmarks.curves.run import Run, between
from benchmarks.curves.simple import simple_ways
from benchmarks.tasks import TASKS
from deltaconvert.calibration.setting import Setting

UNIFORM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
WAYS = ("ours", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--budgets", default="0.5,1,2", help="of calibrate, times the task's own")
    parser.add_argument("--paper-budgets", default="0.5,1,2,4", help="it spends less of them")
    parser.add_argument(
        "--single", action="store_true", help="in single precision, from the same bits anywhere"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, on the CPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="no part starts after so many")
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=1e9,
        help="then calibrate keeps the best so far, and the paper's procedure nothing",
    )
    parser.add_argument("--simple", action="store_true", help="also the ways without thresholds of their own")
    parser.add_argument("--simple-alone", action="store_true", help="these only: nothing is calibrated")
    parser.add_argument("--tried", action="store_true", help="keep every trial, to look at")
    parser.add_argument("--eager", action="store_true", help="record no frames of trials, on a GPU")
    parser.add_argument("--rehearse", action="store_true", help="play no test frame")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if options.single:
        torch.backends.cudnn.allow_tf32 = False
    for name in options.tasks.split(","):
        begin = time.time()
        with torch.no_grad():
            task = TASKS[name](options.calibration, options.frames)
            if options.rehearse:
                task.test = between(task.calibration)[: options.frames]
            all_ways(Run(task, options, until))
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)


def all_ways(run: Run) -> None:
    task, options = run.task, run.options
    if options.simple_alone:
        run.look_at_dense()
        return simple_ways(run)
    trials = run.trials()
    everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
    run.look_at_dense()
    own = task.budget or trials(everywhere.times(task.spent)).loss
    lists = {"ours": options.budgets, "paper": options.paper_budgets}
    budgets = {(way, times): own * times for way in WAYS for times in map(float, lists[way].split(","))}
    calibrated(run, trials, budgets)
    settings = {("one threshold", share): everywhere.times(share) for share in UNIFORM}
    for name, kept in run.kept["settings"].items():
        way, times = name.rsplit(" ", 1)
        settings[way, float(times)] = Setting.of(kept)
    run.play(trials, settings)
    run.keep_best(trials)
    if options.simple and time.monotonic() < run.until:
        simple_ways(run)


if __name__ == "__main__":
    main()
