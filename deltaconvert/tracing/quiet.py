"""Silences torch while something is tried that may fail: it prints pages about each failure."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def without_logs() -> Iterator[None]:
    """torch's loggers print nothing, such as the traceback of an operator that refuses its inputs."""
    loggers = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"
    ]
    speaking = [logger for logger in loggers if not logger.disabled]
    # Loggers that are imported meanwhile are not in the list; they pass their messages to these handlers.
    handlers = [(handler, handler.level) for logger in loggers for handler in logger.handlers]
    for logger in speaking:
        logger.disabled = True
    for handler, _ in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger in speaking:
            logger.disabled = False
        for handler, level in handlers:
            handler.setLevel(level)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and nothing on stderr either: torch.export prints the graph that it has so far."""
    with without_logs(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
