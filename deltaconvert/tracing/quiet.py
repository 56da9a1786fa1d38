"""Attempts that may fail say so to whoever tries; torch would print pages about each."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def without_logs() -> Iterator[None]:
    """What torch's loggers would print stays unsaid, such as the traceback of an operator that refuses its inputs."""
    loggers = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"
    ]
    speaking = [logger for logger in loggers if not logger.disabled]
    # Of loggers that come with what is imported meanwhile: they pass on what they have to say.
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
    """Nor is there a warning, or a word on stderr: torch.export prints the graph that it has got so far."""
    with without_logs(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
