"""How `calibrate` searches for thresholds: the paper's way from front to back, and `allocate`, which gives the budget
to the thresholds that save most work for it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from deltaconvert.calibration.moves import Move, crossed, filled, in_runs, reallocated
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate

INPUT_RUNGS = tuple(0.02 * 2**step for step in range(6))
STARTS = (0.0125, 0.05, 0.2)  # factors for `alike` to begin with: shares of the magnitude at its median layer
CANDIDATES = 4  # settings that are pursued further
ALONE = 6  # gates that are pursued further without thresholds behind them
TRIES = 4  # trials for a common scale
# Work falls as this power of the loss, where thresholds are scaled as a whole (.2 to .3 in trials of six networks).
TRADE = 0.25
# Of the budget: a smaller loss is chance, a larger one says nothing about the budget.
NO_LOSS, FAR = 0.01, 4.0
RUNGS = tuple(0.02 * 2**step for step in range(8))  # of front_to_back: 2 % to 256 % of a site's magnitude
STEP = 4.0  # factor by which a threshold is raised and lowered on trial; its root after a round that gained little
LITTLE = 0.02  # share of the work that is a small gain
# `peak` applies to differences that were not smoothed, so it grows with `smooth` and with the root of `recent`: noise
# must not exceed it.
GATES = (
    Gate(),
    Gate(dilate=2),
    Gate(dilate=4),
    Gate(dilate=24),
    Gate(dilate=64),
    Gate(dilate=8, weak=0.25),
    Gate(dilate=16, weak=0.25),
    Gate(smooth=3, peak=6.0, dilate=4),
    Gate(smooth=5, peak=10.0, dilate=8, weak=0.25),
    Gate(smooth=9, peak=18.0, dilate=4),
    Gate(smooth=9, peak=18.0, dilate=12),
    Gate(smooth=9, peak=18.0, dilate=12, weak=0.25),
    Gate(smooth=9, peak=18.0, dilate=24),
    Gate(smooth=9, peak=18.0, dilate=48),
    Gate(smooth=9, recent=12, peak=64.0, dilate=16),
    Gate(smooth=9, recent=12, peak=64.0, dilate=24),
    Gate(smooth=13, recent=8, peak=64.0, dilate=16),
)


class Search:
    """Searches among settings; `tried` holds all that were tried, with their outcomes.

    until: the time.monotonic() after which nothing more is tried; a trial that is under way is broken off.
    """

    def __init__(self, trials: Trials, budget: float, until: float = math.inf):
        self.trials, self.budget, self.until = trials, budget, until
        self.tried: dict[Setting, Outcome] = {}

    def expected(self, method: str, gates: Sequence[Gate], rounds: int) -> int:
        """About how many trials a method takes: counted on made networks of 4 to 100 layers, where `allocate` kept to
        it within a fifth. By the paper's way a threshold is raised some twice."""
        sites = len(self.trials.sites)
        if method == "front_to_back":
            return 3 * sites
        return round(40 + 24 * len(gates) + 8 * sites + rounds * (30 + 4.5 * sites))

    def look(self, setting: Setting) -> Outcome:
        (outcome,) = self.look_at([setting])
        return outcome

    def look_at(self, settings: Sequence[Setting]) -> list[Outcome]:
        """The outcome of each, several at a time if the trials can. TimeoutError when the time is over: those that were
        done by then are among `tried`."""
        fresh = [setting for setting in dict.fromkeys(settings) if setting not in self.tried]
        self.tried.update(self.trials.done_by(self.until, fresh))
        if not self.tried.keys() >= set(settings):
            raise TimeoutError("the time for the search is over")
        return [self.tried[setting] for setting in settings]

    def fits(self, setting: Setting) -> bool:
        return self.look(setting).loss <= self.budget

    def best(self) -> Setting:
        """The least work within the budget among all that was tried."""
        within = [setting for setting, outcome in self.tried.items() if outcome.loss <= self.budget]
        return min(within, key=lambda setting: self.tried[setting].work, default=self.exact())

    def exact(self) -> Setting:
        return Setting((0.0,) * len(self.trials.sites))

    def front_to_back(self) -> Setting:
        """The paper's: each threshold in turn as high as it can be for its layer's share of the budget. The input's
        changes take three pixels around them along, for which its threshold may be higher. Convolutions without an
        activation have none."""
        setting = replace(self.exact(), gate=Gate(dilate=3))
        places = [place for place, site in enumerate(self.trials.sites) if site.kind != "linear"]
        share = self.budget / len(places)
        for place in places:
            spent, raised = self.look(setting).loss, [setting.at(place, rung) for rung in RUNGS]
            for outcome, candidate in zip(self._one_after_the_other(raised), raised, strict=False):
                if outcome.loss > spent + share:
                    break
                setting = candidate
        return setting

    def _one_after_the_other(self, settings: Sequence[Setting]) -> Iterator[Outcome]:
        """Their outcomes in order; as many are tried ahead as run at a time."""
        for first in range(0, len(settings), self.trials.at_once):
            yield from self.look_at(settings[first : first + self.trials.at_once])

    def allocate(self, gates: Sequence[Gate], rounds: int) -> Setting:
        """First the input and the layers together, then each layer by itself, then the input again for these layers."""
        with suppress(TimeoutError):
            self.settled([self._beginning(gates)], gates, rounds)
        return self.spent()

    def _beginning(self, gates: Sequence[Gate]) -> Setting:
        """The best of four kinds of settings, so never worse than the paper's: layers whose errors are equally large at
        the output, the paper's setting, crosses of both, and no thresholds in the layers."""
        if time.monotonic() > self.until:
            raise TimeoutError("the time for the search is over")
        shares = self.trials.alike()
        starts = self._starts([Setting(shares, gate=gate) for gate in gates])
        paper = self.front_to_back()
        both = [
            setting
            for start in self._promising(starts)[:2]
            for inner in (paper, filled(paper, shares))
            for setting in crossed(start, inner, self.layers)
        ]
        alone = self.frames_alone(gates)[:CANDIDATES]
        return self._leading([*starts, *alone, paper, *self._promising(both)[:CANDIDATES]])

    def _promising(self, settings: Sequence[Setting]) -> list[Setting]:
        """Sorted by the work that they promise once they are scaled to the budget; settings far beyond it come last."""
        self.look_at(settings)

        def promise(setting: Setting) -> tuple[bool, float]:
            part = self.look(setting).loss / self.budget
            return part > FAR, part if part > FAR else self.look(setting).work * max(part, NO_LOSS) ** TRADE

        return sorted(settings, key=promise)

    def _leading(self, settings: Sequence[Setting]) -> Setting:
        """The best of these, each with the layers scaled to the budget, also weighted by channels and with narrow
        changes."""
        words = list(itertools.product((False, True), (frozenset[int](), self.trials.narrowing)))
        every = [
            replace(setting, weighted=weighted, narrow=narrow)
            for weighted, narrow in words
            for setting in settings
        ]
        return min(self.scaled(list(dict.fromkeys(every)), TRIES, but=self.inputs), key=self._rank)

    def frames_alone(self, gates: Sequence[Gate]) -> list[Setting]:
        """For the best gates, a threshold at the input that spends the budget, and none in the layers: what changes
        there passes through the whole network, narrow."""
        alone = [replace(self.exact(), gate=gate, narrow=self.trials.narrowing) for gate in gates]
        found = self.at_the_budget([self._rungs(setting, INPUT_RUNGS) for setting in alone])
        return self.scaled(found[:ALONE], TRIES, start=math.sqrt(2))

    def _starts(self, alike: Sequence[Setting]) -> list[Setting]:
        """alike: one setting for each gate. The best gates and inputs with the layers at one of STARTS, then these with
        the layers at all of them."""
        middle = self._with_inputs([setting.times(STARTS[1]) for setting in alike])
        gates = {setting.gate for setting in middle}
        settings = [setting.times(start) for setting in alike if setting.gate in gates for start in STARTS]
        return self.scaled(self._with_inputs(settings), TRIES, but=self.layers, start=math.sqrt(2))

    def _with_inputs(self, settings: Sequence[Setting]) -> list[Setting]:
        """The best of these, each with the input's threshold that spends the budget."""
        return self.at_the_budget([self._rungs(setting, INPUT_RUNGS) for setting in settings])[:CANDIDATES]

    def continued(self, begin: Sequence[Setting], gates: Sequence[Gate], rounds: int) -> Setting:
        """Continue from what was found for another budget."""
        with suppress(TimeoutError):
            alone = self.frames_alone(gates)[:CANDIDATES]
            self.settled([self._leading([*begin, *alone])], gates, rounds)
        return self.spent()

    def spent(self, tries: int = 2 * TRIES, start: float = 1.2) -> Setting:
        """The best so far, scaled as a whole to spend what is left of the budget."""
        if any(self.best().shares):  # a factor changes nothing about the exact network
            with suppress(TimeoutError):
                self.scaled([self.best()], tries, start=start)
        return self.best()

    def settled(self, leading: list[Setting], gates: Sequence[Gate], rounds: int) -> None:
        """Improve each of `leading` in rounds, layer by layer; in every third round the gate and the input as well."""
        steps = [STEP] * len(leading)
        for number in range(rounds):
            for place, setting in enumerate(leading):
                together = self._promising(in_runs(setting, self.layers, steps[place]))[:CANDIDATES]
                moved = [*self.reallocated(setting, steps[place]), *together]
                moved = self.scaled(moved, TRIES, start=2.0)
                best = min((setting, *moved), key=self._rank)
                if self.look(best).work > (1 - LITTLE) * self.look(setting).work:
                    steps[place] = math.sqrt(steps[place])
                leading[place] = self.regated(best, gates) if number % 3 == 2 else best

    def regated(self, setting: Setting, gates: Sequence[Gate]) -> Setting:
        """The setting with the gate and the input threshold that suit its layers best."""
        share = max((setting.shares[place] for place in self.inputs), default=0.0) or INPUT_RUNGS[0]
        rungs = [share * 2 ** (half / 2) for half in range(-3, 4)]
        found = self.at_the_budget([self._rungs(replace(setting, gate=gate), rungs) for gate in gates])
        others = self.scaled(found[:CANDIDATES], TRIES, but=self.layers, start=math.sqrt(2))
        return min((setting, *self.scaled(others, TRIES, start=2.0)), key=self._rank)

    def at_the_budget(self, lines: Sequence[Sequence[Setting]]) -> list[Setting]:
        """Each line is a list of settings with growing loss. Of each line the setting, interpolated between trials,
        whose loss is the budget; sorted by promised work, settings beyond the budget last."""
        self.look_at([setting for line in lines for setting in line])
        promised = []
        for line in lines:
            tried = [(setting, self.look(setting)) for setting in line]
            # Loss need not grow along a line: an input that hardly ever changes may lose less than one that does.
            inside = [(outcome.work, setting) for setting, outcome in tried if outcome.loss <= self.budget]
            for (low, below), (high, above) in itertools.pairwise(tried):
                if below.loss <= self.budget < above.loss:
                    part = (self.budget - below.loss) / (above.loss - below.loss)
                    inside.append((below.work + part * (above.work - below.work), low.towards(high, part)))
            if inside:
                promised.append((False, *min(inside, key=lambda pair: pair[0])))
            else:
                setting, outcome = min(tried, key=lambda pair: pair[1].loss)
                promised.append((True, outcome.loss, setting))
        return [setting for *_, setting in sorted(promised, key=lambda found: found[:2])]

    @property
    def inputs(self) -> list[int]:
        return [place for place, site in enumerate(self.trials.sites) if site.kind == "input"]

    @property
    def layers(self) -> list[int]:
        return [place for place, site in enumerate(self.trials.sites) if site.kind != "input"]

    def _rungs(self, setting: Setting, rungs: Sequence[float]) -> list[Setting]:
        """With each of these as the input's share."""
        found = []
        for rung in rungs:
            for place in self.inputs:
                setting = setting.at(place, rung)
            found.append(setting)
        return found

    def scaled(
        self, settings: Sequence[Setting], tries: int, but: Collection[int] = (), start: float = 4.0
    ) -> list[Setting]:
        """Each setting times the largest factor found within the budget, the sites `but` left as they are. Factors are
        found by steps of `start`, then by bisection of the logarithm."""
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
        """Settings with the budget moved between layers: each threshold is lowered and raised by itself on trial, and
        each site's changes are made narrow or wide."""
        base, places = self.look(setting), range(len(setting.shares))
        moves = [Move(place, factor) for place in places for factor in (1 / step, step, step**2)]
        moves += [Move(place, turns=True) for place in sorted(self.trials.narrowing)]
        outcomes = self.look_at([move.of(setting) for move in moves])
        pairs = zip(moves, outcomes, strict=True)
        return reallocated(setting, [move.seen(base, outcome) for move, outcome in pairs])

    def _rank(self, setting: Setting) -> tuple[bool, float]:
        """Settings within the budget sort by work, before the others, which sort by loss."""
        outcome = self.look(setting)
        beyond = outcome.loss > self.budget
        return beyond, outcome.loss if beyond else outcome.work
