"""Settings played on a processor by its own backend, faster than by the reference, and no further than need be."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import deltaconvert
from benchmarks.curves.run import Run
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials

Place = tuple[str, float]  # way, strength


def play(run: Run, trials: Trials, settings: Mapping[Place, Setting], beaten: float = math.inf) -> bool:
    """A row for each setting; False where the time was over before.

    beaten: the share of the work from which on a setting cannot be chosen, whatever it scores. One that comes to that
    over the whole run, were the rest of its frames free, ends there: `kept["beaten"]` says after how many frames.
    """
    known = {(row["way"], row["strength"]) for row in (*run.kept["rows"], *run.kept.get("beaten", []))}
    for place, setting in settings.items():
        if place in known:
            continue
        if time.monotonic() > run.until:
            return False
        answers, works = _played(run, trials, setting, beaten)
        if len(answers) == len(run.test):
            run.add(*place, statistics.mean(works), run.scores(answers))
        else:
            row: dict[str, Any] = {"way": place[0], "strength": place[1], "frames": len(answers)}
            row["work"] = statistics.mean(works)
            run.kept.setdefault("beaten", []).append(row)
            run.write()
    return True


def _played(run: Run, trials: Trials, setting: Setting, beaten: float) -> tuple[list[Any], list[float]]:
    """The answers, and each frame's share of a dense one's work behind the first, which is always full."""
    first, *others = run.test
    delta = deltaconvert.convert(run.task.network, first, threshold=trials.thresholds(setting), backend="cpu")
    answers, works = [run.task.decode(delta(first))], list[float]()
    for frame in others:
        if sum(works) > beaten * len(others):
            break
        answers.append(run.task.decode(delta(frame)))
        works.append(delta.stats().work)
    return answers, works
