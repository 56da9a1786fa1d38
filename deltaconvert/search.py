"""How `calibrate` looks for thresholds: the paper's way from front to back, and one that gives the budget to those
thresholds that save the most work for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from deltaconvert.gate import Gate
from deltaconvert.setting import Outcome, Setting
from deltaconvert.trials import Trials

INPUT_RUNGS = tuple(0.02 * 2**step for step in range(6))
STARTS = (0.0125, 0.05, 0.2)  # of the magnitude at the middle one of the layers that are all alike
CANDIDATES = 4  # of these that are looked at closer
TRIES = 4  # of a common scale
PARTS = (0.0, 0.07, 0.15, 0.3, 0.5)  # of the layers, of one setting before and behind those of another
# Work falls as this power of the loss, where thresholds are scaled as a whole (.2 to .3 in trials of six networks).
TRADE = 0.25
NO_LOSS, FAR = 0.01, 4.0  # of the budget: less is chance, more tells nothing of what is within it
SPANS = (2, 4, 8)  # into so many runs of neighbours the layers are divided
RUNGS = tuple(0.02 * 2**step for step in range(8))  # of front_to_back: 2 % to 256 % of a site's magnitude
STEP = 4.0  # by which one threshold is raised and lowered to see what it does; its root after a round that gave little
LITTLE = 0.02  # of the work
# Noise of one deviation must not pass `peak`, which smoothing has not made smaller: it grows with `smooth` and with the
# root of `recent`.
GATES = (
    Gate(),
    Gate(dilate=2),
    Gate(dilate=4),
    Gate(dilate=8, weak=0.25),
    Gate(smooth=3, peak=6.0, dilate=4),
    Gate(smooth=5, peak=10.0, dilate=8, weak=0.25),
    Gate(smooth=9, peak=18.0, dilate=4),
    Gate(smooth=9, peak=18.0, dilate=12),
    Gate(smooth=9, peak=18.0, dilate=12, weak=0.25),
    Gate(smooth=9, recent=12, peak=64.0, dilate=16),
    Gate(smooth=9, recent=12, peak=64.0, dilate=24),
    Gate(smooth=13, recent=8, peak=64.0, dilate=16),
)


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
        found = min(list(self.tried), key=self._rank)
        return found if self.fits(found) else self.exact()

    def exact(self) -> Setting:
        setting = Setting((0.0,) * len(self.trials.sites))
        self.look(setting)
        return setting

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
        """Their outcomes; as many as run at a time are tried ahead."""
        for first in range(0, len(settings), self.trials.at_once):
            yield from self.look_at(settings[first : first + self.trials.at_once])

    def allocate(self, gates: Sequence[Gate], rounds: int) -> Setting:
        """The input and the layers together: layers all alike in what they do to the end, layers as the paper has them,
        and both in one; then each layer apart, and the input again for the layers found. It is never worse than the
        paper's: that is one of its beginnings."""
        shares = self.trials.alike()
        starts = self._starts([Setting(shares, gate=gate) for gate in gates])
        paper = self.front_to_back()
        inner = (paper, self._filled(paper, shares))
        crossed = [
            setting
            for start in self._promising(starts)[:2]
            for layers in inner
            for setting in self.crossed(start, layers)
        ]
        leading = [self._leading([*starts, paper, *self._promising(crossed)[:CANDIDATES]])]
        self.settled(leading, gates, rounds)
        return self.spent()

    def crossed(self, outer: Setting, inner: Setting) -> list[Setting]:
        """The gate, the input and the first and the last layers of one, those between of the other, cut in several
        places. Behind a gate that lets little pass the first layers need hardly a threshold; the paper's way, which
        comes to the later ones last, has found how much these bear. Where maps skip what lies between, the last ones
        are again a matter of what the input lets pass."""
        layers = self._layers
        cuts = sorted({int(len(layers) * part) for part in PARTS})
        runs = [layers[first : len(layers) - last] for first in cuts for last in cuts]
        pairs = list(enumerate(zip(outer.shares, inner.shares, strict=True)))
        return [
            replace(outer, shares=tuple(theirs if place in run else ours for place, (ours, theirs) in pairs))
            for run in runs
            if run
        ]

    def _promising(self, settings: Sequence[Setting]) -> list[Setting]:
        """Those first that promise the least work once they are scaled to the budget; those far beyond it last."""
        self.look_at(settings)

        def promise(setting: Setting) -> tuple[bool, float]:
            part = self.look(setting).loss / self.budget
            return part > FAR, part if part > FAR else self.look(setting).work * max(part, NO_LOSS) ** TRADE

        return sorted(settings, key=promise)

    def _leading(self, settings: Sequence[Setting]) -> Setting:
        """The best of these with a common scale for the layers, each also weighted by channels."""
        both = [*settings, *(replace(setting, weighted=True) for setting in settings)]
        return min(self.scaled(both, TRIES, but=self.inputs), key=self._rank)

    def _starts(self, alike: Sequence[Setting]) -> list[Setting]:
        """For layers that are all alike, one of `alike` for each gate: the best gates and inputs with the layers at one
        height, then these with the layers at others."""
        middle = self._with_inputs([setting.times(STARTS[1]) for setting in alike])
        gates = {setting.gate for setting in middle}
        settings = [setting.times(start) for setting in alike if setting.gate in gates for start in STARTS]
        return self.scaled(self._with_inputs(settings), TRIES, but=self._layers, start=math.sqrt(2))

    def _with_inputs(self, settings: Sequence[Setting]) -> list[Setting]:
        """The best of these, each with the input's threshold that spends the budget."""
        return self.at_the_budget([self._rungs(setting, INPUT_RUNGS) for setting in settings])[:CANDIDATES]

    def _filled(self, setting: Setting, shares: Sequence[float]) -> Setting:
        """Sites without a threshold get one by `shares`, as high among these as the middle one of the others is: no
        factor raises a zero."""
        ratios = sorted(mine / other for mine, other in zip(setting.shares, shares, strict=True) if mine)
        if not ratios:
            return setting
        ratio = ratios[len(ratios) // 2]
        pairs = zip(setting.shares, shares, strict=True)
        return replace(setting, shares=tuple(mine or other * ratio for mine, other in pairs))

    def continued(self, begin: Sequence[Setting], gates: Sequence[Gate], rounds: int) -> Setting:
        """From what was found for another budget to this one."""
        self.settled(self.scaled(begin, TRIES, start=math.sqrt(2)), gates, rounds)
        return self.spent()

    def spent(self, tries: int = 2 * TRIES) -> Setting:
        """The best so far, scaled as a whole to what is left of the budget."""
        self.scaled([self.best()], tries, start=1.2)
        return self.best()

    def settled(self, leading: list[Setting], gates: Sequence[Gate], rounds: int) -> None:
        """Each layer apart, in rounds, for each of some beginnings; now and then the gate and the input again."""
        steps = [STEP] * len(leading)
        for number in range(rounds):
            for place, setting in enumerate(leading):
                together = self._promising(self.together(setting, steps[place]))[:CANDIDATES]
                moved = [*self.reallocated(setting, steps[place]), *together]
                moved = self.scaled(moved, TRIES, start=2.0)
                best = min((setting, *moved), key=self._rank)
                if self.look(best).work > (1 - LITTLE) * self.look(setting).work:
                    steps[place] = math.sqrt(steps[place])
                leading[place] = self.regated(best, gates) if number % 3 == 2 else best

    def regated(self, setting: Setting, gates: Sequence[Gate]) -> Setting:
        """With the gate and the input's threshold that suit its layers best."""
        share = max((setting.shares[place] for place in self.inputs), default=0.0) or INPUT_RUNGS[0]
        rungs = [share * 2 ** (half / 2) for half in range(-3, 4)]
        found = self.at_the_budget([self._rungs(replace(setting, gate=gate), rungs) for gate in gates])
        others = self.scaled(found[:CANDIDATES], TRIES, but=self._layers, start=math.sqrt(2))
        return min((setting, *self.scaled(others, TRIES, start=2.0)), key=self._rank)

    def at_the_budget(self, lines: Sequence[Sequence[Setting]]) -> list[Setting]:
        """Each line is of settings that lose more and more; what lies on it where it loses the budget, by straight
        lines between the trials. Those that promise the least work come first, those beyond the budget last."""
        self.look_at([setting for line in lines for setting in line])
        promised = []
        for line in lines:
            tried = [(setting, self.look(setting)) for setting in line]
            # A higher input threshold may lose less: what hardly ever changes is at least of one piece.
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
    def _layers(self) -> list[int]:
        return [place for place, site in enumerate(self.trials.sites) if site.kind != "input"]

    def _rungs(self, setting: Setting, rungs: Sequence[float]) -> list[Setting]:
        """With each of these as the input's share."""
        found = []
        for rung in rungs:
            for place in self.inputs:
                setting = setting.at(place, rung)
            found.append(setting)
        return found

    def _with_input_of(self, setting: Setting, layers: Setting) -> Setting:
        """The gate and the input's share of `setting`, the layers' of the other."""
        for place in self.inputs:
            layers = layers.at(place, setting.shares[place])
        return replace(layers, gate=setting.gate)

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
        """Each threshold lower by `step`, as it is, higher, or higher by its square, so that the predicted work is
        least at the same predicted loss. Predictions hold for small and for few moves: also the moves' root and their
        fourth root, and the half and the quarter of them that promise most.

        Squares of the guide's loss add up, errors of different layers being independent; so does saved work, nearly.
        """
        base = self.look(setting)
        factors = (1 / step, step, step**2)
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

    def together(self, setting: Setting, step: float) -> list[Setting]:
        """Runs of neighbouring layers lower by `step`, higher, or higher by its square. What grows through a run of
        layers no single one of them stops: each alone saves little."""
        layers, found = self._layers, []
        for spans in SPANS:
            bounds = [len(layers) * span // spans for span in range(spans + 1)]
            runs = [layers[first:last] for first, last in itertools.pairwise(bounds)]
            for run in runs:
                but = set(range(len(setting.shares))).difference(run)
                found += [setting.times(factor, but) for factor in (1 / step, step, step**2) if run]
        return found

    def _rank(self, setting: Setting) -> tuple[bool, float]:
        """Those within the budget by their work, the others behind them by their loss."""
        outcome = self.look(setting)
        beyond = outcome.loss > self.budget
        return beyond, outcome.loss if beyond else outcome.work
