"""calibrate: the thresholds with the least work within a budget of accuracy, found on a clip.

Two ways. `front_to_back` is the paper's (DeltaCNN, section 4): from the first layer to the last each threshold is
raised until the loss has grown by its layer's share of the budget. `allocate` measures once for each threshold what
raising and lowering it does to the loss and to the work, gives the budget to those that save the most work for it, and
settles the common scale by trying.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltaconvert.errors import InputError
from deltaconvert.gate import Gate
from deltaconvert.inputs import inputs_of
from deltaconvert.metrics import Metric, metric_of
from deltaconvert.model import DeltaModel
from deltaconvert.thresholds import Thresholds
from deltaconvert.trials import Decode, Outcome, Setting, Trials

FRAMES = 40  # of a clip, where nobody says how many
INPUT_RUNGS = tuple(0.02 * 2**step for step in range(6))
STARTS = (
    0.0125,
    0.05,
    0.2,
)  # of a site's magnitude: where activations start; gates and statistics at a tenth of it
CANDIDATES = 4  # of these that are looked at closer
TRIES = 4  # of a common scale
RUNGS = tuple(0.02 * 2**step for step in range(8))  # of front_to_back: 2 % to 256 % of a site's magnitude
STEP = 4.0  # by which one threshold is raised and lowered to see what it does; its root after a round that gave nothing
# Noise of one deviation must not pass `peak`, which smoothing has not made smaller: it grows with `smooth` and with the
# root of `recent`.
GATES = (
    Gate(),
    Gate(dilate=2),
    Gate(dilate=8, weak=0.25),
    Gate(smooth=5, peak=10.0, dilate=8, weak=0.25),
    Gate(smooth=9, peak=18.0, dilate=4),
    Gate(smooth=9, peak=18.0, dilate=12),
    Gate(smooth=9, peak=18.0, dilate=12, weak=0.25),
    Gate(smooth=9, recent=12, peak=64.0, dilate=16),
    Gate(smooth=9, recent=12, peak=64.0, dilate=24),
    Gate(smooth=9, recent=8, peak=52.0, dilate=16),
)


@dataclass(frozen=True)
class Calibration:
    """What was found: `model` is the network with these thresholds; give `thresholds`, or the file that `write` makes,
    to convert(threshold=...).

    loss, work: on the clip; work is the share of a dense frame's multiply-accumulates. trials: clips played for it.
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

    def write(self, path: str | Path) -> None:
        facts = ("loss", "work", "budget", "metric", "method", "frames")
        self.thresholds.write(path, found={name: getattr(self, name) for name in facts})

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.loss:.4g} of {self.budget:.4g}, multiply-accumulates {self.work:.1%} of dense "
            f"({self.frames} frames, {self.trials} trials)"
        )


def calibrate(
    delta: DeltaModel,
    frames: Any,
    *,
    budget: float = 0.01,
    metric: str | Metric = "relative_l2",
    method: str = "allocate",
    decode: Decode | None = None,
    guide: Metric | None = None,
    gates: Sequence[Gate] = GATES,
    rounds: int = 2,
    limit: int = FRAMES,
    resume: str | Path | None = None,
    at_once: int = 1,
    progress: bool = True,
) -> Calibration:
    """Find the thresholds of `delta` that stay within `budget` on a clip and do the least work; `delta` stays as it is.

    frames: inputs of the network in their order, as it is called with them, or uint8 (H, W, 3) images where the model
        knows how they become inputs; or a video file, a folder of images, an address, a camera's number. The first
        `limit` are taken.
    budget: the largest loss of the metric, against the dense network on the same frames.
    metric: relative_l2, noise (0.01 is a PSNR of 40 dB), top1, segmentation, detection, keypoints (see
        deltaconvert.metrics), or a function of two lists, our outputs and the dense ones, that gives a loss.
    decode: applied to every output before the metric sees it: boxes of a detector, labels of a segmentation.
    guide: the metric that sensitivities are measured with; relative L2 of the outputs unless said. It should be smooth;
        `metric` itself may be it.
    method: "allocate" or "front_to_back".    gates, rounds: what `allocate` tries at the input; how often it allocates.
    resume: a file that keeps every trial, so that a calibration that was cut off goes on where it was.
    at_once: trials at a time: processes of one thread on the CPU, streams of one batch on a GPU, each with its state.
    progress: show a bar on a terminal.

    Nothing is drawn at random: the same frames give the same thresholds. The clip should show what the camera will,
    also the hard parts: a metric that still frames cannot lose on lets every threshold grow.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}: choose from {', '.join(METHODS)}")
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget={budget!r}: it is a loss above 0 that is still accepted")
    clip = inputs_of(delta, frames, limit)
    judge = metric_of(metric)
    with _bar(progress) as tell:
        trials = Trials(
            delta,
            clip,
            judge,
            decode=decode,
            guide=guide,
            file=None if resume is None else Path(resume),
            told=tell,
            **{"workers" if delta.device.type == "cpu" else "streams": at_once},
        )
        search = Search(trials, budget)
        setting = search.front_to_back() if method == "front_to_back" else search.allocate(gates, rounds)
    outcome = trials(setting)
    thresholds = trials.thresholds(setting)
    args, kwargs = delta.signature.call(clip[0])
    return Calibration(
        model=delta.with_thresholds(thresholds, *args, **kwargs),
        thresholds=thresholds,
        setting=setting,
        loss=outcome.loss,
        work=outcome.work,
        budget=budget,
        metric=getattr(judge, "__name__", "metric"),
        method=method,
        frames=len(clip),
        trials=len(search.tried),
    )


METHODS = ("allocate", "front_to_back")


@dataclass(frozen=True)
class Move:
    """A threshold times `factor`: what that adds to the square of the guide's loss and to the work."""

    factor: float
    loss: float
    work: float

    def cost(self, price: float) -> float:
        return self.work + price * self.loss


class Search:
    """Walks through settings; `tried` holds those that were within the budget and those that were not."""

    def __init__(self, trials: Trials, budget: float):
        self.trials, self.budget = trials, budget
        self.tried: dict[Setting, Outcome] = {}

    def look(self, setting: Setting) -> Outcome:
        (outcome,) = self.look_at([setting])
        return outcome

    def look_at(self, settings: Sequence[Setting]) -> list[Outcome]:
        """The outcome of each: side by side where the trials can."""
        found = self.trials.many(settings)
        self.tried.update(zip(settings, found, strict=True))
        return found

    def fits(self, setting: Setting) -> bool:
        return self.look(setting).loss <= self.budget

    def best(self) -> Setting:
        """The least work within the budget among all that was tried."""
        found = min(self.tried, key=self._rank)
        return found if self.fits(found) else self.exact()

    def exact(self) -> Setting:
        setting = Setting((0.0,) * len(self.trials.sites))
        self.look(setting)
        return setting

    def front_to_back(self) -> Setting:
        """The paper's: each threshold in turn as high as it can be for its layer's share of the budget. The input's
        changes take three pixels around them along, for which its threshold may be higher."""
        setting = replace(self.exact(), gate=Gate(dilate=3))
        share = self.budget / len(setting.shares)
        for place in range(len(setting.shares)):
            spent, raised = self.look(setting).loss, [setting.at(place, rung) for rung in RUNGS]
            for outcome, candidate in zip(self._one_after_the_other(raised), raised, strict=False):
                if outcome.loss > spent + share:
                    break
                setting = candidate
        return setting

    def _one_after_the_other(self, settings: Sequence[Setting]) -> Iterator[Outcome]:
        """Their outcomes; as many as run at a time are tried ahead."""
        for first in range(0, len(settings), self.trials.at_once):
            yield from self.look_at(settings[first : first + self.trials.at_once])

    def allocate(self, gates: Sequence[Gate], rounds: int) -> Setting:
        """The input and the layers together, then each layer apart; then the input again, for the layers found."""
        rest = [1.0 if site.kind == "activation" else 0.1 for site in self.trials.sites]
        grid = [
            self._with_input(Setting(tuple(start * share for share in rest), gate=gate), rung)
            for gate in gates
            for rung in INPUT_RUNGS
            for start in STARTS
        ]
        # A higher input threshold may lose less: what hardly ever changes is at least of one piece.
        self.look_at(grid)
        found = sorted(grid, key=self._rank)[:CANDIDATES]
        found += [replace(setting, weighted=True) for setting in found]
        setting = min(self.scaled(found, TRIES, but=self._inputs), key=self._rank)
        step = STEP
        for number in range(rounds):
            moved = self.scaled(self.reallocated(setting, step), TRIES, start=2.0)
            best = min((setting, *moved), key=self._rank)
            if best == setting:
                step = math.sqrt(step)
            setting = self.regated(best, gates) if number == 0 else best
        return self.best()

    def regated(self, setting: Setting, gates: Sequence[Gate]) -> Setting:
        """With the gate and the input's threshold that suit its layers best."""
        share = max((setting.shares[place] for place in self._inputs), default=0.0)
        others = [
            self._with_input(replace(setting, gate=gate), share * 2 ** (half / 2))
            for gate in gates
            for half in range(-3, 4)
        ]
        self.look_at(others)
        found = sorted(others, key=self._rank)[:CANDIDATES]
        return min((setting, *self.scaled(found, TRIES, start=2.0)), key=self._rank)

    @property
    def _inputs(self) -> list[int]:
        return [place for place, site in enumerate(self.trials.sites) if site.kind == "input"]

    def _with_input(self, setting: Setting, share: float) -> Setting:
        for place in self._inputs:
            setting = setting.at(place, share)
        return setting

    def scaled(
        self, settings: Sequence[Setting], tries: int, but: Collection[int] = (), start: float = 4.0
    ) -> list[Setting]:
        """Each setting, but for some sites, times the largest factor found within the budget: by steps of `start`, then
        by halving the interval of its logarithm."""
        low: list[float | None] = [None] * len(settings)  # factors within and beyond the budget
        high, factors = list(low), [1.0] * len(settings)
        for _ in range(tries):
            tried = [setting.times(factor, but) for setting, factor in zip(settings, factors, strict=True)]
            for place, outcome in enumerate(self.look_at(tried)):
                (low if outcome.loss <= self.budget else high)[place] = factors[place]
                below, above = low[place], high[place]
                if below and above:
                    factors[place] = math.sqrt(below * above)
                else:
                    factors[place] *= start if below else 1 / start
        ends = zip(settings, low, factors, strict=True)
        return [setting.times(below or factor, but) for setting, below, factor in ends]

    def reallocated(self, setting: Setting, step: float) -> list[Setting]:
        """Each threshold lower, as it is, or higher by `step`, so that the predicted work is least at the same
        predicted loss. Predictions hold for small and for few moves: also the moves' root and their fourth root, and
        the half and the quarter of them that promise most.

        Squares of the guide's loss add up, errors of different layers being independent; so does saved work, nearly.
        """
        base = self.look(setting)
        factors = (1 / step, step)
        alone = [
            setting.at(n, share * factor) for n, share in enumerate(setting.shares) for factor in factors
        ]
        outcomes = iter(self.look_at(alone))
        options: list[list[Move]] = []  # for each site
        for _ in setting.shares:
            moved = [(factor, next(outcomes)) for factor in factors]
            gains = [
                Move(factor, found.guide**2 - base.guide**2, found.work - base.work)
                for factor, found in moved
            ]
            # That less work loses less is chance: others are not to spend it.
            gains = [move if move.work > 0 else replace(move, loss=max(move.loss, 0.0)) for move in gains]
            options.append([Move(1.0, 0.0, 0.0), *gains])

        low, high = 1e-12, 1e12  # work for a unit of loss
        for _ in range(80):
            price = math.sqrt(low * high)
            if sum(min(seen, key=lambda move: move.cost(price)).loss for seen in options) > 0:
                low = price
            else:
                high = price
        moves = [min(seen, key=lambda move: move.cost(high)) for seen in options]
        order = sorted(range(len(moves)), key=lambda place: moves[place].cost(high))

        def moved_by(part: float, count: int) -> Setting:
            shares = list(setting.shares)
            for place in order[:count]:
                shares[place] *= moves[place].factor ** part
            return replace(setting, shares=tuple(shares))

        count = sum(move.factor != 1 for move in moves)
        parts = {(1.0, count), (0.5, count), (0.25, count), (1.0, -(-count // 2)), (1.0, -(-count // 4))}
        return [moved_by(*part) for part in sorted(parts)]

    def _rank(self, setting: Setting) -> tuple[bool, float]:
        """Those within the budget by their work, the others behind them by their loss."""
        outcome = self.look(setting)
        beyond = outcome.loss > self.budget
        return beyond, outcome.loss if beyond else outcome.work


@contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[Setting, Outcome], None]]:
    """Tells of each trial on a terminal: how many, and what the last one came to."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    shown = wanted and console.is_terminal and sys.stderr is not None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("calibrating", total=None)
        count = 0

        def tell(setting: Setting, outcome: Outcome) -> None:
            nonlocal count
            count += 1
            bar.update(
                task,
                description=f"trial {count}: loss {outcome.loss:.4g}, work {outcome.work:.1%}",
            )

        yield tell
