"""By the clock: a threshold saves work, and to compare with it takes time. Those that cost more than they save go."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.measure import Dense, timed
from deltaconvert.model import DeltaModel
from deltaconvert.thresholds import Thresholds

CLOSEST = 3  # gates that are timed
SETTLES = 3  # frames that are not timed: full, recorded, played for the first time


def quickest(search: Search, clock: Callable[[Setting], float]) -> tuple[Setting, float]:
    """Of what a search found within its budget the quickest, and its milliseconds.

    The gates that come to the least work are timed, each with the thresholds found for it; then, for the quickest,
    without the quarter, the half and more of the thresholds that save the least work, and between the best of these.
    """
    known: dict[Setting, float] = {}

    def time_of(setting: Setting) -> float:
        if setting not in known:
            known[setting] = clock(setting)
        return known[setting]

    leading: dict[Any, Setting] = {}
    for setting in sorted(search.tried, key=lambda setting: search.tried[setting].work):
        if search.fits(setting):
            leading.setdefault(setting.gate, setting)
    best = min([*leading.values()][:CLOSEST] or [search.exact()], key=time_of)

    placed = [place for place, share in enumerate(best.shares) if share > 0 and place not in search.inputs]
    without = search.look_at([best.at(place, 0.0) for place in placed])
    order = [place for _, place in sorted(zip([outcome.work for outcome in without], placed, strict=True))]

    def left_out(count: int) -> Setting:
        return best.without(order[:count])

    counts = sorted({len(order) * quarter // 4 for quarter in range(5)})
    while True:
        found = min(
            (count for count in counts if search.fits(left_out(count))), key=lambda n: time_of(left_out(n))
        )
        place = counts.index(found)
        around = {
            (found + counts[beside]) // 2 for beside in (place - 1, place + 1) if 0 <= beside < len(counts)
        }
        if around <= set(counts) or len(counts) > 6:
            return left_out(found), time_of(left_out(found))
        counts = sorted({*counts, *around})


def milliseconds(model: DeltaModel, thresholds: Thresholds, clip: Sequence[Sequence[Tensor]]) -> float:
    """The median time of a frame of the clip, by the model's own backend."""
    args, kwargs = model.signature.call(clip[0])
    trial = model.with_thresholds(thresholds, *args, **kwargs)
    calls = (model.signature.call(frame) for frame in clip)
    return _median(timed(trial, *args, **kwargs)[1] for args, kwargs in calls)


def dense_milliseconds(model: DeltaModel, clip: Sequence[Sequence[Tensor]]) -> float:
    """The same of the dense network, by torch."""
    dense = Dense(model)
    return _median(timed(dense, *frame)[1] for frame in clip)


def _median(times: Iterable[float]) -> float:
    found = [*times]
    return statistics.median(found[SETTLES:] or found)
