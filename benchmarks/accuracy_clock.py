"""Accuracy against time on this processor: the thresholds of accuracy.py's rows, timed at the task's own size.

    python benchmarks/accuracy_clock.py --tasks pets,highway --out FILE

The loss and the work of a row are those of results/accuracy/TASK.json, of the test frames (`by time`: the thresholds of
accuracy_by_time, which a GPU's clock chose). Here some of these frames in a row are timed, frame by frame, with the
dense engines of engines.py beside every curve. FILE has a row for each point: way, strength, loss, work, milliseconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from benchmarks.curves.run import Run, played_here  # noqa: E402
from benchmarks.engines import ENGINES, Network, prepare  # noqa: E402
from benchmarks.tasks import TASKS  # noqa: E402
from deltaconvert.calibration.setting import Setting  # noqa: E402
from deltaconvert.calibration.trials import Trials  # noqa: E402
from deltaconvert.watching.measure import timed  # noqa: E402

BY_TIME = ROOT / "benchmarks/results/accuracy_by_time"  # thresholds by the clock of a GPU
WARM = 4  # frames, the full one among them
FURTHEST = 8  # times the accepted loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="pets,highway", help="of one output: not juggle")
    parser.add_argument("--engines", default="torch channels_last,onnxruntime,openvino")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    options = played_here(parser.parse_args())
    facts: dict[str, Any] = {**environment(), "tasks": {}}
    for name in options.tasks.split(","):
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "benchmarks/results/accuracy" / f"{name}.json", folder)
            inner = argparse.Namespace(**vars(options) | {"out": Path(folder)})
            run = Run(TASKS[name](options.calibration, 200), inner, until=float("inf"))
            for found in curve(run, options):
                facts["tasks"][name] = found
                options.out.write_text(json.dumps(facts, indent=1) + "\n")


def curve(run: Run, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    network, name = run.task.network, run.task.name
    frames = run.inputs(list(run.task.test)[: options.frames])
    dense = dense_ms(network, frames, options.engines.split(","))
    found: dict[str, Any] = {"dense": dense, "rows": []}
    trials = run.trials()
    known = [(row, trials.thresholds(setting)) for row, setting in points(run, trials)]
    fastest = BY_TIME / f"{name}_best.json"
    known.insert(0, (json.loads(fastest.read_text())["found"] | {"way": "by time"}, fastest))
    for row, thresholds in known:
        delta = deltaconvert.convert(network, frames[0], threshold=thresholds)
        kept = {key: row[key] for key in ("way", "strength", "loss", "accepted", "work") if key in row}
        found["rows"].append({**kept, "ms": median_ms(delta, frames)})
        print(name, found["rows"][-1], "dense", min(dense.values()), flush=True)
        yield found


def points(run: Run, trials: Trials) -> Iterator[tuple[dict[str, Any], Setting]]:
    """The rows whose thresholds are in the file, and these; of curves that were scaled as a whole the factor too."""
    everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
    for row in run.kept["rows"]:
        name = f"{row['way']} {row['strength']:g}"
        if row["loss"] > FURTHEST * row["accepted"]:
            continue
        if row["way"] == "one threshold":
            yield row, everywhere.times(row["strength"])
        elif name in run.kept["settings"]:
            yield row, Setting.of(run.kept["settings"][name]).padded(len(trials.sites))


def dense_ms(network: torch.nn.Module, frames: Sequence[Tensor], wanted: Sequence[str]) -> dict[str, float]:
    graph = deltaconvert.convert(network, frames[0]).graph
    engines = prepare(
        Network(network, graph, frames[0], torch.get_num_threads()),
        [name for name in wanted if name in ENGINES],
    )
    for name, why in engines.skipped.items():
        print(f"{name}: {why}", flush=True)
    return {name: median_ms(lambda x, e=engine: e(x)(), frames) for name, engine in engines.ready.items()}


def median_ms(network: Callable[[Tensor], Any], frames: Sequence[Tensor]) -> float:
    return statistics.median([timed(network, frame)[1] for frame in frames][WARM:])


if __name__ == "__main__":
    main()
