"""The thresholds that do the least work at the accepted loss, of what accuracy.py has played and kept.

    python benchmarks/accuracy_best.py [--tasks pets,juggle] --out FOLDER

FOLDER/TASK_best.json for gpu_accuracy.py, from benchmarks/results/accuracy/TASK.json. Shares become thresholds by the
magnitudes of maps on the calibration frames; no test frame is played.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import Run  # noqa: E402
from benchmarks.accuracy_tasks import TASKS  # noqa: E402


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="pets,highway,juggle,denoise,upscale")
    parser.add_argument("--calibration", type=int, default=24, help="frames")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.device, options.single, options.workers, options.eager = "cpu", True, 1, True
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.tasks.split(","):
        shutil.copy(ROOT / "benchmarks/results/accuracy" / f"{name}.json", options.out)
        run = Run(TASKS[name](options.calibration, 1), options, until=0)
        trials = run.trials()
        for kept in run.kept["settings"].values():  # linear sites come last, and juggle's search knew none
            kept["shares"] += [0.0] * (len(trials.sites) - len(kept["shares"]))
        run.keep_best(trials)


if __name__ == "__main__":
    main()
