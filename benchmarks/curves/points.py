"""The points of a task's curves as thresholds to run, each with its row of the test frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.curves.run import Run
from deltaconvert.calibration.setting import Setting
from deltaconvert.thresholds import Rule, Thresholds

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/accuracy"
BY_TIME = ROOT / "benchmarks/results/accuracy_by_time"  # thresholds by the clock of a GPU
KEPT = ("way", "strength", "loss", "accepted", "work")

Row = dict[str, Any]


def points(run: Run, furthest: float) -> list[tuple[Row, Thresholds]]:
    """By time first, then the rows of the run that lose up to so many times what is accepted."""
    trials = run.trials()
    everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
    found = by_time(run.task.name)
    for row in run.kept["rows"]:
        if row["loss"] <= furthest * row["accepted"]:
            setting = everywhere.times(row["strength"]) if row["way"] == "one threshold" else run.setting(row)
            if setting is not None:
                found.append((row, trials.thresholds(setting.padded(len(trials.sites)))))
    return found


def by_time(task: str) -> list[tuple[Row, Thresholds]]:
    """The thresholds of a GPU's clock, and the same at other heights, where the test frames were played with these."""
    file = BY_TIME / f"{task}_best.json"
    if not file.exists():
        return []
    known, row = Thresholds.of(file), json.loads(file.read_text())["found"] | {"way": "by time"}
    row["strength"] = row.get("input", row["strength"])
    others = json.loads((BY_TIME / "heights.json").read_text()).get(task, [])
    return [(row, known), *((other | {"way": "by time"}, scaled(known, other["times"])) for other in others)]


def scaled(thresholds: Thresholds, factor: float) -> Thresholds:
    """All of them higher or lower by a factor."""

    def times(rule: Rule) -> Rule:
        if not isinstance(rule, str):
            return rule * factor
        amount, *words = rule.split()
        number = float(amount.removesuffix("%")) * factor
        return " ".join([f"{number!r}{'%' * amount.endswith('%')}", *words])

    return Thresholds({name: times(rule) for name, rule in thresholds.rules.items()}, thresholds.gate)
