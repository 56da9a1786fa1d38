"""`calibrate` and the paper's procedure on the same trials, each to several budgets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

from benchmarks.curves.run import Run
from benchmarks.curves.together import Together
from deltaconvert.calibration.search import GATES, Search
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials

ROUNDS = 12  # of allocation
SPENDING = 4  # tries of a common scale, at the end
Key = tuple[str, float]  # the way, and the budget as so many times the task's own


def calibrated(run: Run, trials: Trials, budgets: dict[Key, float]) -> None:
    """What is not known yet of these, into the file of the run; the thresholds lie beside it, for others to run."""
    todo = {key: budget for key, budget in budgets.items() if named(key) not in run.kept["settings"]}
    if todo:
        BothWays(run, trials, todo).keep()


def named(key: Key) -> str:
    return f"{key[0]} {key[1]:g}"


class BothWays:
    """The searches of one task. Those that run side by side ask for trials of one batch."""

    def __init__(self, run: Run, trials: Trials, budgets: dict[Key, float]):
        self.run, self.trials, self.budgets = run, trials, budgets
        self.papers = [key for key in budgets if key[0] == "paper"]
        # Those first that are nearest to the task's own.
        self.ours = sorted(
            (key for key in budgets if key[0] == "ours"), key=lambda key: abs(math.log(key[1]))
        )
        self.together = Together(trials, len(self.papers) + bool(self.ours))
        self.tried: dict[Setting, Outcome] = {}  # by calibrate, for all of its budgets
        self.begin = time.monotonic()

    def keep(self) -> None:
        found = self._searched() | self._spent()
        for key, setting in found.items():
            self._keep(key, setting)
        self._play_afresh({named(key): setting for key, setting in found.items()})
        if self.run.options.tried:
            rows = [setting.to_json() | vars(outcome) for setting, outcome in self.tried.items()]
            (self.run.folder / f"{self.run.task.name}_tried.json").write_text(json.dumps(rows))

    def _search(self, key: Key, until: float = math.inf) -> Search:
        return Search(cast(Trials, self.together), self.budgets[key], until)

    def _searched(self) -> dict[Key, Setting]:
        """What the paper's procedure found, while calibrate filled `tried`."""
        with ThreadPoolExecutor(len(self.budgets)) as pool:
            running = {key: pool.submit(self._papers, key) for key in self.papers}
            if self.ours:
                pool.submit(self._allocate).result()
            ended = {key: future.result() for key, future in running.items()}
        return {key: setting for key, setting in ended.items() if setting is not None}

    def _papers(self, key: Key) -> Setting | None:
        """None where the time was over: half of the paper's way is not the paper's way."""
        with self.together.leaving(), suppress(TimeoutError):
            return self._search(key, self.begin + self.run.options.search_seconds).front_to_back()
        return None

    def _allocate(self) -> None:
        """The first budget gets twice the time of another; what was found for it, or by an earlier run, is where the
        others begin. What a search to one budget tried counts for all."""
        kept, known = self.run.kept, list[Setting]()
        others = [Setting.of(found) for name, found in kept["settings"].items() if name.startswith("ours")]
        # `begun`: put there by hand, from a run that was cut off.
        others += [Setting.of(found) for found in kept.get("begun", [])]
        part = self.run.options.search_seconds / (len(self.ours) + 1)
        with self.together.leaving():
            for place, key in enumerate(self.ours):
                search = self._search(key, self.begin + part * (place + 2))
                search.tried = self.tried
                if known or others:
                    search.continued(known or others, GATES, ROUNDS)
                else:
                    search.allocate(GATES, ROUNDS)
                known = [least(self.tried, self.budgets[key])]

    def _spent(self) -> dict[Key, Setting]:
        """Of what calibrate tried the best for each budget, scaled to what is left of it."""
        self.together.searches = len(self.ours)

        def spent(key: Key) -> Setting:
            with self.together.leaving():
                search = self._search(key)
                search.tried = dict(self.tried)
                return search.spent(SPENDING)

        with ThreadPoolExecutor(max(len(self.ours), 1)) as pool:
            return dict(zip(self.ours, pool.map(spent, self.ours), strict=True))

    def _keep(self, key: Key, setting: Setting) -> None:
        name, budget, outcome = named(key), self.budgets[key], self.trials(setting)
        kept = {
            **setting.to_json(),
            "trials": len(self.tried) if key[0] == "ours" else 0,  # for all of its budgets
            "seconds": time.monotonic() - self.begin,  # of all ways together
            "budget": budget,
            **vars(outcome),
        }
        run = self.run
        run.kept["settings"][name] = kept
        run.write()
        thresholds = self.trials.thresholds(setting)
        thresholds.write(run.folder / f"{run.task.name}_{name.replace(' ', '_')}.json", found=kept)
        told = f"loss {outcome.loss:.4g} of {budget:.4g}, work {outcome.work:.4f}, {kept['gate']}"
        print(f"{run.task.name} {name}: {kept['seconds']:.0f} s, {told}", flush=True)

    def _play_afresh(self, chosen: dict[str, Setting]) -> None:
        """What is reported has been played frame by frame; trials may have been replayed, or kept from another run."""
        for name, outcome in self._afresh(chosen):
            self.run.kept["settings"][name]["afresh"] = vars(outcome)
            told = f"loss {outcome.loss:.4g}, work {outcome.work:.4f}"
            print(f"{self.run.task.name} {name} afresh: {told}", flush=True)

    def _afresh(self, chosen: dict[str, Setting]) -> Iterator[tuple[str, Outcome]]:
        names, at_once = list(chosen), self.trials.streams
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            yield from zip(some, self.trials.afresh([chosen[name] for name in some]), strict=True)


def least(tried: dict[Setting, Outcome], budget: float) -> Setting:
    """The least work within a budget; of none within it the least loss."""
    within = {setting: outcome.work for setting, outcome in tried.items() if outcome.loss <= budget}
    return min(within or tried, key=lambda setting: within.get(setting, tried[setting].loss))
