"""Whether thresholds keep their budget on other frames than those they were found on."""

from __future__ import annotations

from dataclasses import replace

from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials

TRIES = 12  # of a common factor


def held_to(setting: Setting, found_on: Trials, others: Trials, budget: float) -> tuple[Setting, float]:
    """The setting, times the largest factor found (1 or less) with which it is within the budget on the other frames as
    well; exact where there is none. And what it loses there."""
    pairs = zip(others.sites, found_on.sites, strict=True)
    others.sites = [replace(site, scale=known.scale) for site, known in pairs]  # shares are of those
    search = Search(others, budget)
    if not search.fits(setting):
        search.scaled([setting], TRIES, start=2.0)
        setting = search.best()
    return setting, search.look(setting).loss
