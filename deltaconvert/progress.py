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


@contextmanager
def trials_told(wanted: bool, budget: float) -> Iterator[Callable[[Setting, Outcome], None]]:
    """Tells of each trial what it came to; how many there were, what one takes, the least work within the budget."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    shown = wanted and console.is_terminal and sys.stderr is not None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task, lines = bar.add_task("calibrating", total=None), Lines()
        count, least, begin = 0, math.inf, time.monotonic()

        def tell(setting: Setting, outcome: Outcome) -> None:
            nonlocal count, least
            count += 1
            if outcome.loss <= budget:
                least = min(least, outcome.work)
            best = "none within the budget yet" if least == math.inf else f"least so far {least:.1%}"
            each = (time.monotonic() - begin) / count
            text = (
                f"trial {count}, {each:.2g} s each: loss {outcome.loss:.4g}, work {outcome.work:.1%}; {best}"
            )
            bar.update(task, description=text)
            if wanted and not shown:
                lines.tell(f"calibrating: {text}")

        yield tell
