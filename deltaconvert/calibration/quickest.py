"""Choosing by the clock: a threshold saves work, but comparing takes time. Those that cost more than they save go."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from deltaconvert.calibration.search import TRIES, Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.gate import Gate
from deltaconvert.model import DeltaModel
from deltaconvert.thresholds import Thresholds
from deltaconvert.watching.measure import Dense, timed

CLOSEST = 3  # gates that are timed with thresholds behind them
RUNGS = 7  # numbers of thresholds that are timed
SETTLES = 3  # frames that are not timed: full, recorded, played for the first time


def quickest(
    search: Search, clock: Callable[[Setting], float], gates: Sequence[Gate] = ()
) -> tuple[Setting, float]:
    """The quickest setting that a search found within its budget, and its milliseconds.

    Timed are: the gates with the least work, each with the thresholds found for it; `gates` without thresholds in the
    layers; and the quickest setting that has thresholds without more and more of those that save least, the others
    raised to spend the budget again.
    """
    known: dict[Setting, float] = {}

    def time_of(setting: Setting) -> float:
        if setting not in known:
            known[setting] = clock(setting)
        return known[setting]

    leading = [*itertools.islice(_of_each_gate(search), CLOSEST)]
    for setting in (search.best(), *leading):
        time_of(setting)
    with suppress(TimeoutError):  # when the time is over, the quickest so far
        alone = [setting for setting in search.frames_alone(gates) if search.fits(setting)]
        for setting in alone:
            time_of(setting)
        if leading:
            _left_out(search, min(leading, key=time_of), time_of)
    best = min(known, key=time_of)
    return best, time_of(best)


def _of_each_gate(search: Search) -> Iterator[Setting]:
    """The setting with the least work for each gate that has thresholds in the layers, the least work first."""
    seen = set[Gate]()
    for setting in sorted(search.tried, key=lambda setting: search.tried[setting].work):
        if setting.gate not in seen and _placed(search, setting) and search.fits(setting):
            seen.add(setting.gate)
            yield setting


def _placed(search: Search, setting: Setting) -> list[int]:
    """The layers that have thresholds."""
    return [place for place in search.layers if setting.shares[place] > 0]


def _left_out(search: Search, setting: Setting, time_of: Callable[[Setting], float]) -> None:
    """Time the setting with more and more of its thresholds left out."""
    placed = _placed(search, setting)
    works = [outcome.work for outcome in search.look_at([setting.at(place, 0.0) for place in placed])]
    order = [place for _, place in sorted(zip(works, placed, strict=True))]
    times: dict[int, float] = {}

    def time_without(count: int) -> None:
        (raised,) = search.scaled([setting.without(order[:count])], TRIES, start=1.2)
        if search.fits(raised):
            times[count] = time_of(raised)

    for quarter in range(5):
        time_without(len(order) * quarter // 4)
    while times and len(times) < RUNGS:
        counts = sorted(times)
        place = counts.index(min(times, key=lambda count: times[count]))
        pairs = itertools.pairwise(counts[max(place - 1, 0) : place + 2])
        fresh = {(low + high) // 2 for low, high in pairs}.difference(counts)
        if not fresh:
            break
        for count in fresh:
            time_without(count)


def milliseconds(model: DeltaModel, thresholds: Thresholds, clip: Sequence[Sequence[Tensor]]) -> float:
    """The median time of a frame of the clip, by the model's own backend."""
    args, kwargs = model.signature.call(clip[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of candidates; what is taken warns in its turn
        candidate = model.with_thresholds(thresholds, *args, **kwargs)
    return _median_of(candidate, model, clip)


def dense_milliseconds(
    model: DeltaModel, clip: Sequence[Sequence[Tensor]], against: Callable[..., Any] | None = None
) -> float:
    """The same of the dense network: of `against`, or else by torch."""
    if against is not None:
        return _median_of(against, model, clip)
    dense = Dense(model)
    return _median(timed(dense, *frame)[1] for frame in clip)


@torch.no_grad()
def _median_of(network: Callable[..., Any], model: DeltaModel, clip: Sequence[Sequence[Tensor]]) -> float:
    calls = (model.signature.call(frame) for frame in clip)
    return _median(timed(network, *args, **kwargs)[1] for args, kwargs in calls)


def _median(times: Iterable[float]) -> float:
    found = [*times]
    return statistics.median(found[SETTLES:] or found)
