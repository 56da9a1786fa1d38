"""How much a classifier's score can tell: where its answers change, and whether thresholds lose them there.

    python benchmarks/accuracy_answers.py --task bottle --calibration 36 --out FILE

after `accuracy_check.py`: the dense network's answers on the frames of the calibration, on those between them, which
the check plays, and on the test's; how often they change, and how far its first class is ahead of the second. Then the
test under what the check chose (`--way`), by the cpu backend: how many answers differ, and how near to a change of the
dense network's. All frames count, also those of which the dense network is not sure. Nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.curves.run import Run, between
from deltaconvert.calibration.setting import Setting

NEAR = 5  # frames from a change


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=("bottle",), default="bottle")
    parser.add_argument("--way", default="ours checked 0.5", help="of results/accuracy/TASK.json")
    parser.add_argument("--calibration", type=int, default=36, help="frames")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run, kept = Run.of_record(options)
    task = run.task
    facts: dict[str, Any] = {**environment(), "task": task.name}
    parts = {"calibration": task.calibration, "between them": between(task.calibration), "test": task.test}
    for name, numbers in parts.items():
        frames = run.inputs(numbers)
        outputs = [task.network(x) for x in frames]
        facts[name] = told(outputs)
        print(name, facts[name], flush=True)
    trials = run.trials()
    thresholds = trials.thresholds(Setting.of(kept["settings"][options.way]).padded(len(trials.sites)))
    delta = deltaconvert.convert(task.network, frames[0], threshold=thresholds, backend="cpu")
    facts[options.way] = differing(classes(map(delta, frames)), classes(outputs))
    print(options.way, facts[options.way])
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


def told(outputs: Sequence[Tensor]) -> dict[str, Any]:
    """ahead: the share of the first class less that of the second, the median and the lowest tenth of the frames."""
    answers = classes(outputs)
    pairs = [output.softmax(1).topk(2).values[0].tolist() for output in outputs]
    ahead = sorted(first - second for first, second in pairs)
    return {
        "frames": len(answers),
        "classes": dict(Counter(answers).most_common()),
        "changes": len(changes(answers)),
        "ahead": [round(statistics.median(ahead), 4), round(ahead[len(ahead) // 10], 4)],
    }


def differing(ours: Sequence[int], dense: Sequence[int]) -> dict[str, int]:
    """How many frames there are, and in how many answers differ; and how many of both lie near a change of the dense
    network's answer."""
    every = range(len(dense))
    near = {place for place in every if any(abs(place - change) <= NEAR for change in changes(dense))}
    differ = [place for place in every if ours[place] != dense[place]]
    return {
        "frames": len(dense),
        "near a change": len(near),
        "differ": len(differ),
        "differ near a change": len(near.intersection(differ)),
    }


def classes(outputs: Any) -> list[int]:
    return [int(output.argmax()) for output in outputs]


def changes(answers: Sequence[int]) -> list[int]:
    """The frames whose answer is not that of the one before."""
    return [place for place in range(1, len(answers)) if answers[place] != answers[place - 1]]


if __name__ == "__main__":
    main()
