"""Accuracy against time: times the rows of accuracy.py on this processor or on a GPU.

    python benchmarks/accuracy_clock.py --tasks pets,highway --out FOLDER
    python benchmarks/accuracy_clock.py --device cuda --enlarged --batch 8 --kept KEPT --out FOLDER

The loss and the work of a row are those of the test frames in results/accuracy/TASK.json (`by time`: those of the
thresholds in accuracy_by_time, which were chosen by a GPU's clock). This script times a run of these frames, and the
dense engines in the same run. On a processor the frames come one by one at the task's own size; on a GPU a batch holds
the clip at several places, as in gpu_accuracy.py, and `--enlarged` makes its frames 1080p.

The ways without thresholds are given the time of the best dense engine: on every 2nd, 3rd or 5th frame, on the share
of the frames that a whole-frame gate lets through, or on smaller frames. The time to compare or shrink frames is left
out, which favours these ways. FOLDER/TASK.json has the rows with their milliseconds, for accuracy_page.py. A second run
continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import environment
from benchmarks.curves.clocks import Card, Clock, Processor
from benchmarks.curves.points import KEPT, RECORD, Row, points
from benchmarks.curves.run import Run, played_here, played_on
from benchmarks.gpu_dense import MODES
from benchmarks.tasks import TASKS

FURTHEST = 8.0  # times the accepted loss
SHARE_OF_FRAMES = ("skipped frames", "frame gate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--furthest", type=float, default=FURTHEST, help="times the accepted loss")
    parser.add_argument(
        "--engines", default="torch channels_last,onnxruntime,openvino", help="of a processor"
    )
    parser.add_argument(
        "--modes", nargs="*", choices=MODES, default=["compile"], help="of torch.compile, GPU"
    )
    parser.add_argument("--kept", type=Path, help="folder of what torch compiled, for later runs")
    parser.add_argument("--enlarged", action="store_true", help="to 1080p, on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="on a GPU")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cuda = options.device.startswith("cuda")
    options = played_on(options.device, options) if cuda else played_here(options)
    torch.backends.cudnn.benchmark = True
    for name in options.tasks.split(","):
        file = options.out / f"{name}.json"
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            shutil.copy(RECORD / f"{name}.json", folder)
            inner = argparse.Namespace(**vars(options) | {"out": Path(folder)})
            run = Run(TASKS[name](options.calibration, 200), inner, until=float("inf"))
            known = json.loads(file.read_text())["rows"] if file.exists() else []
            for facts in curve(run, Card if cuda else Processor, options, known):
                file.write_text(json.dumps(facts, indent=1) + "\n")


def curve(
    run: Run, clock_of: Any, options: argparse.Namespace, known: Sequence[Row]
) -> Iterator[dict[str, Any]]:
    """Yields what is to be written, after every row. known: the rows of a run that was interrupted."""
    begin = time.monotonic()
    with_thresholds = points(run, options.furthest)
    clock: Clock = clock_of(run, options, [thresholds for _, thresholds in with_thresholds])
    dense = clock.dense()
    best = min(dense.values())
    facts: dict[str, Any] = {**environment(), **clock.facts(), "dense_ms": dense, "rows": list(known)}
    places = {place(row) for row in known}

    def add(row: Row, **timed: Any) -> dict[str, Any]:
        facts["rows"].append({**{key: row[key] for key in KEPT}, **timed, "dense_ms": best})
        told = f"{timed['ms']:.3f} of {best:.3f} ms, loss {row['loss']:.4f}, work {row['work']:.4f}"
        print(f"{time.monotonic() - begin:.0f} s: {run.task.name} {place(row)} {told}", flush=True)
        return facts

    rows = [row for row in run.kept["rows"] if place(row) not in places]
    for row in rows:
        if row["way"] in SHARE_OF_FRAMES:
            yield add(row, ms=best * row["work"])
    for row, thresholds in with_thresholds:
        if place(row) not in places:
            yield add(row, **clock.converted(thresholds))
    for row in rows:
        if row["way"] == "lower resolution":
            engines = clock.dense(row["strength"])
            yield add(row, ms=min(engines.values()), engines=engines)


def place(row: Row) -> str:
    return f"{row['way']} {row['strength']:g}"


if __name__ == "__main__":
    main()
