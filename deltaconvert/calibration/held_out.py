"""Whether thresholds keep their budget on other frames than those they were found on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.metrics import Metric

TRIES = 12  # of a common factor


@dataclass(frozen=True)
class Held:
    """A setting that keeps the budget on the other frames, and its loss there; before: that of the setting as found."""

    setting: Setting
    loss: float
    before: float


def held_to(setting: Setting, found_on: Trials, others: Trials, budget: float) -> Held:
    """The setting, scaled by the largest factor found, at most 1, that keeps the budget on the other frames as well;
    the exact setting if none does."""
    pairs = zip(others.sites, found_on.sites, strict=True)
    others.sites = [replace(site, scale=known.scale) for site, known in pairs]  # shares refer to these scales
    search = Search(others, budget)
    before = search.look(setting).loss
    if not search.fits(setting):
        search.scaled([setting], TRIES, start=2.0)
        setting = search.best()
    return Held(setting, search.look(setting).loss, before)


def in_parts(metric: Metric, parts: int) -> Metric:
    """The largest loss of so many consecutive parts of the frames: their mean hides the part that loses most."""

    def worst(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        bounds = [len(dense) * part // parts for part in range(parts + 1)]
        runs = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        return max(metric(ours[run], dense[run]) for run in runs)

    return worst if parts > 1 else metric
