"""calibrate: the thresholds with the least work within a budget of accuracy, found on a clip.

There are two methods (calibration/search.py). `front_to_back` is the paper's (DeltaCNN, section 4): from the first
layer to the last, each threshold is raised until the loss has grown by its layer's share of the budget.

`allocate` starts from the best of these: that setting, thresholds whose errors are equally large at the output, crosses
of both, and thresholds at the frame alone. It measures what raising and lowering each threshold, and runs of
neighbouring ones, does to the loss and to the work; gives the budget to those that save most work for it; and finds
their common scale by trying.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from deltaconvert.calibration.asked import (
    expect_budget,
    expect_loss,
    expect_numbers,
    expect_parts,
    expect_ways,
    gates_of,
)
from deltaconvert.calibration.held_out import Held, held_to, in_parts
from deltaconvert.calibration.quickest import dense_milliseconds, milliseconds, quickest
from deltaconvert.calibration.search import GATES, Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Decode, Trials
from deltaconvert.gate import Gate
from deltaconvert.metrics import Metric, metric_of, name_of
from deltaconvert.model import DeltaModel, expect_converted
from deltaconvert.progress import trials_told
from deltaconvert.text import counted
from deltaconvert.thresholds import Thresholds
from deltaconvert.watching.inputs import inputs_of

FRAMES = 40  # of a clip, by default
LONGER = 4  # times as many frames to check with
FACTS = (
    "loss checked checked_before work budget metric method frames trials cut_off milliseconds dense_milliseconds"
).split()
SEARCHING = 0.7  # share of the seconds; the rest is for raising the best so far up to the budget


@dataclass(frozen=True)
class Calibration:
    """What was found.

    model: the network with these thresholds.
    thresholds: for convert(threshold=...), which also takes the file that `write` makes.
    loss, work: on the clip; work is the share of a dense frame's multiply-accumulates.
    trials: how often the clip was played. cut_off: whether `seconds` ended the search.
    milliseconds, dense_milliseconds: of a frame, converted and dense, with by="time" (measured before `check`).
    checked: the loss on the frames of `check`, or on the worst of their parts.
    checked_before: the same before thresholds were lowered for it. Above the budget, it tells that the clip lacks what
        the frames of `check` show.
    """

    model: DeltaModel
    thresholds: Thresholds
    setting: Setting
    loss: float
    work: float
    budget: float
    metric: str
    method: str
    frames: int
    trials: int
    milliseconds: float | None = None
    checked: float | None = None
    checked_before: float | None = None
    dense_milliseconds: float | None = None
    cut_off: bool = False

    def write(self, path: str | Path) -> None:
        self.thresholds.write(path, found=self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The results without the thresholds; None for what was not measured."""
        return {name: getattr(self, name) for name in FACTS}

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.loss:.4g} of {self.budget:.4g}, multiply-accumulates {self.work:.1%} of dense "
            f"({self.frames} frames, {counted(self.trials, 'trial')}{', cut off' if self.cut_off else ''})"
            f"{self._check()}{self._speed()}"
        )

    def _check(self) -> str:
        if self.checked is None or self.checked_before is None:
            return ""
        told = f", {self.checked:.4g} on the frames to check with"
        if self.checked_before <= self.budget:
            return told
        return f"{told}, for which thresholds were lowered: it was {self.checked_before:.4g}"

    def _speed(self) -> str:
        ours, dense = self.milliseconds, self.dense_milliseconds
        if ours is None or dense is None:
            return ""
        told = f"; {ours:.3g} ms a frame, {dense:.3g} ms dense"
        return (
            told if ours < dense else f"{told}: converting does not pay on this clip, keep the dense network"
        )


def calibrate(
    delta: DeltaModel,
    frames: Any,
    *,
    budget: float = 0.01,
    metric: str | Metric = "relative_l2",
    method: str = "allocate",
    by: str = "work",
    against: Callable[..., Any] | None = None,
    decode: Decode | None = None,
    guide: str | Metric | None = None,
    gates: Sequence[Gate | Mapping[str, Any]] = GATES,
    rounds: int = 2,
    limit: int = FRAMES,
    seconds: float = math.inf,
    check: Any = None,
    check_parts: int = 1,
    resume: str | Path | None = None,
    at_once: int = 1,
    progress: bool = True,
) -> Calibration:
    """Find the thresholds of `delta` that stay within `budget` on a clip and do the least work; `delta` stays as it is.

    A gate is searched for as well. The guards of the model's own gate (cut, refresh, max_density, nonfinite) stay, and
    are in force in every trial.

    frames: consecutive inputs of the network, as it is called with them; or uint8 (H, W, 3) images, if the model knows
        how they become inputs; or a video file, a folder of images, an address, a camera's number. The first `limit`
        are taken.
    budget: the largest loss of the metric, against the dense network on the same frames; the named metrics are shares,
        0.01 is 1 %.
    metric: relative_l2, nrmse (PSNR as a loss: 0.01 is 40 dB), top1, segmentation, detection, keypoints (see
        deltaconvert.metrics), or a function of two lists, our outputs and the dense ones, that gives a loss.
    decode: applied to every output before the metric sees it: boxes of a detector, labels of a segmentation.
    guide: what sensitivities are measured with, also a metric's name or a function; by default relative L2 of the
        outputs. It should be smooth.
    by: "work" or "time". With "time" the result is timed on the clip, on the model's device, and thresholds that cost
        more time than they save are left out. Give frames of the batch size that you will run.
    against: with by="time", the dense network to compare with, called as `delta` is: `torch.compile(model)`, for
        example, which may take half the time of the eager network that is timed by default.
    method: "allocate" or "front_to_back".
    gates, rounds: what `allocate` tries at the input, each as convert(gate=...) takes it; how often it allocates.
    seconds: after these it takes the best so far, which is the exact network if nothing better was found yet; a trial
        that is under way is broken off. The dense outputs and one trial take the time that they take, whatever it says,
        and so do `check` and the clock of by="time", which come after it.
    check: other frames, or a longer part of the same file: up to four times `limit`. Thresholds are lowered until they
        are within the budget there as well. A few frames alone make thresholds look better than they are.
    check_parts: divides the frames of `check` into so many consecutive parts, each of which has to keep the budget by
        itself. The mean of all frames hides the part that loses most.
    resume: a file that keeps every trial, so that a calibration that was cut off can go on. Trials with other weights,
        frames or guards are kept apart. Functions are known by their names: if you change one, name another file.
    at_once: trials at a time: processes of one thread on the CPU, streams of one batch on a GPU, each with its state.
    progress: show a bar on a terminal, elsewhere a line on stderr now and then.

    There is no randomness: the same frames give the same thresholds, unless `seconds` ends the search. The clip should
    show what the camera will see, the hard parts included: where nothing is at stake every threshold may grow.
    """
    expect_converted(delta)
    expect_ways(method, by, against, decode)
    judge, guide = metric_of(metric), None if guide is None else metric_of(guide)
    expect_budget(budget, judge)
    expect_numbers(
        seconds, limit=(limit, 2), rounds=(rounds, 0), at_once=(at_once, 1), check_parts=(check_parts, 1)
    )
    tried = gates_of(gates)
    begin = time.monotonic()
    clip, others = _clips(delta, frames, check, limit, check_parts)
    with trials_told(progress, budget) as tell:
        on_cpu = delta.device.type == "cpu"
        workers, streams = (at_once, 1) if on_cpu else (1, at_once)
        trials_on = partial(Trials, delta, decode=decode, guide=guide, workers=workers, streams=streams)
        trials = trials_on(clip, judge, told=tell, file=None if resume is None else Path(resume))
        expect_loss(trials, budget)
        search = Search(trials, budget, begin + SEARCHING * seconds)
        tell.expect(trials.count, search.expected(method, tried, rounds))
        if by == "work":
            found = _searched(search, method, tried, rounds, begin + seconds)
        else:
            found = _timed(search, method, tried, rounds, begin + seconds, against)
        held = None
        if others is not None:
            held = held_to(found.setting, trials, trials_on(others, in_parts(judge, check_parts)), budget)
    return _calibration(search, found, held, metric=name_of(judge), method=method)


def _clips(
    delta: DeltaModel, frames: Any, check: Any, limit: int, parts: int
) -> tuple[list[list[Tensor]], list[list[Tensor]] | None]:
    """The frames to search on, and those to check with."""
    if check is None:
        expect_parts(None, parts)
        return inputs_of(delta, frames, limit), None
    clip, others = inputs_of(delta, frames, limit), inputs_of(delta, check, LONGER * limit)
    expect_parts(others, parts)
    return clip, others


@dataclass(frozen=True)
class _Found:
    """What a search found. cut_off: time ran out. milliseconds, dense_milliseconds: of a frame, where it was timed."""

    setting: Setting
    cut_off: bool
    milliseconds: float | None = None
    dense_milliseconds: float | None = None


def _searched(search: Search, method: str, gates: Sequence[Gate], rounds: int, until: float) -> _Found:
    """What the method found; if its time ran out, the best so far, raised in the time that is left."""
    try:
        setting = search.front_to_back() if method == "front_to_back" else search.allocate(gates, rounds)
    except TimeoutError:
        setting = search.best()
    cut_off = time.monotonic() > search.until
    search.until = until
    return _Found(search.spent(start=2.0) if cut_off else setting, cut_off)


def _timed(
    search: Search,
    method: str,
    gates: Sequence[Gate],
    rounds: int,
    until: float,
    against: Callable[..., Any] | None,
) -> _Found:
    """The quickest of what was found, by the clock of the model's device."""
    # First, because thresholds at the frame alone are mostly the fastest, and time may run out.
    with suppress(TimeoutError):
        search.frames_alone(gates)
    found = _searched(search, method, gates, rounds, until)
    trials = search.trials
    delta, clip = trials.model, trials.frames
    setting, took = quickest(
        search, lambda setting: milliseconds(delta, trials.thresholds(setting), clip), gates
    )
    return _Found(setting, found.cut_off, took, dense_milliseconds(delta, clip, against))


def _calibration(search: Search, found: _Found, held: Held | None, metric: str, method: str) -> Calibration:
    """The network with what was found, or with what is left of it where it was held to other frames."""
    trials, setting = search.trials, found.setting if held is None else held.setting
    search.until = math.inf  # the exact network was perhaps not tried yet
    outcome, thresholds = search.look(setting), trials.thresholds(setting)
    args, kwargs = trials.model.signature.call(trials.frames[0])
    with warnings.catch_warnings():
        # That a clip needs nothing at all is told by the work; nobody gave this threshold.
        warnings.filterwarnings("ignore", "a threshold of .* at the input")
        model = trials.model.with_thresholds(thresholds, *args, **kwargs)
    return Calibration(
        model=model,
        thresholds=thresholds,
        setting=setting,
        loss=outcome.loss,
        work=outcome.work,
        budget=search.budget,
        metric=metric,
        method=method,
        frames=len(trials.frames),
        trials=len(search.tried),
        milliseconds=found.milliseconds,
        checked=None if held is None else held.loss,
        checked_before=None if held is None else held.before,
        dense_milliseconds=found.dense_milliseconds,
        cut_off=found.cut_off,
    )
