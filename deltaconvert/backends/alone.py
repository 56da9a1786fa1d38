"""Captures of CUDA graphs, one thread at a time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()  # of the process, as torch's capture is


@contextmanager
def alone() -> Iterator[None]:
    """Inside, no other thread captures: torch waits for the device before a capture, which fails during another one.
    The garbage collector is off, because freeing an old model's graph ends any capture."""
    with _LOCK:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()
