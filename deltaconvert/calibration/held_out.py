"""Whether thresholds keep their budget on other frames than those they were found on."""

from __future__ import annotations

from dataclasses import replace

from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials

TRIES = 12  # of a common factor


def held_to(setting: Setting, found_on: Trials, others: Trials, budget: float) -> tuple[Setting, float]:
    """(setting, its loss on the other frames): scaled by the largest factor found, at most 1, that keeps the budget
    there as well; the exact setting if none does."""
    pairs = zip(others.sites, found_on.sites, strict=True)
    others.sites = [replace(site, scale=known.scale) for site, known in pairs]  # shares refer to these scales
    search = Search(others, budget)
    if not search.fits(setting):
        search.scaled([setting], TRIES, start=2.0)
        setting = search.best()
    return setting, search.look(setting).loss
