"""Trials that several searches want to know, tried in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials


class Together:
    """Trials for searches that run side by side, each in its thread. When all of them wait, as many settings as run at
    a time are tried, of those first that want to know the fewest."""

    def __init__(self, trials: Trials, searches: int):
        self._trials, self.searches = trials, searches
        self.sites, self.at_once = trials.sites, trials.at_once
        shares = trials.alike()
        self.alike, self.narrowing = (lambda: shares), trials.narrowing
        self._known: dict[Setting, Outcome] = {}
        self._asked: list[list[Setting]] = []
        self._turn, self._error = threading.Condition(), None

    def many(self, settings: Sequence[Setting]) -> list[Outcome]:
        with self._turn:
            fresh = [setting for setting in settings if setting not in self._known]
            if fresh:
                self._asked.append(fresh)
                self._try_while_all_wait()
            while self._error is None and not all(setting in self._known for setting in settings):
                self._turn.wait()
            if self._error is not None:
                raise self._error
            return [self._known[setting] for setting in settings]

    def done_by(self, until: float, settings: Sequence[Setting]) -> dict[Setting, Outcome]:
        """Some at a time, since what several searches try together is not broken off."""
        done: dict[Setting, Outcome] = {}
        for first in range(0, len(settings), 2 * self.at_once):
            if time.monotonic() > until:
                break
            some = settings[first : first + 2 * self.at_once]
            done.update(zip(some, self.many(some), strict=True))
        return done

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Around a search, which wants to know nothing more when it ends."""
        try:
            yield
        finally:
            with self._turn:
                self.searches -= 1
                self._try_while_all_wait()

    def _try_while_all_wait(self) -> None:
        while self._asked and len(self._asked) == self.searches and self._error is None:
            lists = sorted(self._asked, key=len)
            wanted = list(dict.fromkeys(setting for settings in lists for setting in settings))
            wanted = wanted[: self._trials.at_once]
            try:
                self._known.update(zip(wanted, self._trials.many(wanted), strict=True))
            except BaseException as error:  # those that wait are told as well
                self._error = error
            left = ([s for s in settings if s not in self._known] for settings in self._asked)
            self._asked = [settings for settings in left if settings]
            self._turn.notify_all()
