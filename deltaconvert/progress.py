"""How far a long job is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deltaconvert.calibration.setting import Outcome, Setting

EVERY = 15.0  # seconds


class Lines:
    """A line on stderr now and then; none for jobs that are done sooner."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def tell(self, text: str) -> None:
        if time.monotonic() - self._told >= EVERY and sys.stderr is not None:
            self._told = time.monotonic()
            print(text, file=sys.stderr, flush=True)


class Told:
    """Called with each trial; makes a line of its result, the count, the time of one, and the best so far.

    show: takes how far it is, what the trial came to, the number of trials and how many are expected.
    """

    def __init__(self, budget: float, show: Callable[[str, str, int, int], None]):
        self._budget, self._show = budget, show
        self._count, self._about, self._fresh = 0, 0, 0
        self._least, self._begin = math.inf, time.monotonic()

    def expect(self, known: int, about: int) -> None:
        """So many trials are known already, and it will be about so many in all."""
        self._count, self._about, self._begin = known, about, time.monotonic()

    def __call__(self, setting: Setting, outcome: Outcome) -> None:
        self._count += 1
        self._fresh += 1
        if outcome.loss <= self._budget:
            self._least = min(self._least, outcome.work)
        best = "none within the budget yet" if self._least == math.inf else f"least so far {self._least:.1%}"
        each = (time.monotonic() - self._begin) / self._fresh
        of = f" of some {self._about}" if self._about else ""
        come_to = f"loss {outcome.loss:.4g}, work {outcome.work:.1%}; {best}"
        self._show(f"trial {self._count}{of}, {each:.2g} s each", come_to, self._count, self._about)


@contextmanager
def trials_told(wanted: bool, budget: float) -> Iterator[Told]:
    """A bar on a terminal, with the last trial below it, and lines elsewhere, if wanted."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, lines = Console(stderr=True), Lines()
    if not (wanted and console.is_terminal and sys.stderr is not None):

        def tell(far: str, came_to: str, *_: int) -> None:
            if wanted:
                lines.tell(f"calibrating: {far}: {came_to}")

        yield Told(budget, tell)
        return
    bar = Progress(TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    task = bar.add_task("calibrating", total=None)
    with Live(bar, console=console, transient=True) as live:

        def show(far: str, came_to: str, count: int, about: int) -> None:
            # `about` is an estimate: beyond it the bar stays full.
            total = max(count, about) if about else None
            bar.update(task, description=f"calibrating: {far}", completed=count, total=total)
            live.update(Group(bar, came_to))  # of two lines, since 80 columns do not hold both

        yield Told(budget, show)
