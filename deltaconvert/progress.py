"""How far a long job is, where no terminal shows a bar."""

from __future__ import annotations

import sys
import time

EVERY = 15.0  # seconds


class Lines:
    """A line on stderr now and then; none for jobs that are done sooner."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def tell(self, text: str) -> None:
        if time.monotonic() - self._told >= EVERY and sys.stderr is not None:
            self._told = time.monotonic()
            print(text, file=sys.stderr, flush=True)
