"""Who captures a CUDA graph does it alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()  # of the process, as torch's capture is


@contextmanager
def alone() -> Iterator[None]:
    """One thread at a time: torch waits for the device before it captures, which fails while another one does. And no
    garbage is collected: an old model's graph, when it is freed, ends any capture."""
    with _LOCK:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()
