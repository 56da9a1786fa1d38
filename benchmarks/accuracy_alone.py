"""What a threshold at the input alone does, judged on calibration frames.

    python benchmarks/accuracy_alone.py --out FILE

What passes the gate goes through the whole network, either with the surroundings that each layer adds (`wide`) or
without them (`narrow`). Each is tried with gates that include a growing area around every change. No test frame is
played.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import environment
from benchmarks.curves.run import Run, played_on
from benchmarks.tasks import TASKS
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate

GATES = [Gate(smooth=9, peak=18.0, dilate=dilate) for dilate in (12, 24, 48)]
INPUTS = (0.02, 0.04, 0.08, 0.16, 0.32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="pets,highway,juggle")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("trials"), help="keeps the trials")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run_options = played_on(options.device, argparse.Namespace(out=options.folder))
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.tasks.split(","):
        with torch.no_grad():
            run = Run(TASKS[name](options.calibration, 1), run_options, until=float("inf"))
            kept[name] = {"frames": options.calibration, "rows": [*rows(run.trials())], **environment()}
        kept[name]["gpu"] = run.kept["gpu"]
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


def rows(trials: Trials) -> Iterator[dict[str, object]]:
    inputs = [float(site.kind == "input") for site in trials.sites]
    changes = {"wide": frozenset[int](), "narrow": trials.narrowing}
    ways = [*itertools.product(GATES, changes, INPUTS)]
    settings = [Setting(tuple(inputs), False, gate, changes[word]).times(share) for gate, word, share in ways]
    for (gate, word, share), outcome in zip(ways, trials.many(settings), strict=True):
        row = {"changes": word, "gate": gate.to_json(), "input": share, "loss": outcome.loss}
        print(row | {"work": outcome.work}, flush=True)
        yield row | {"work": outcome.work}


if __name__ == "__main__":
    main()
