"""The order of a model's work, whichever threads and CUDA streams its calls come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch

from deltaconvert.running.modes import own_types

F = TypeVar("F", bound=Callable[..., Any])


class Turns:
    """Calls of one model take turns: threads wait for each other, and on a GPU what a call launches follows all that
    the calls before it launched; for that nothing waits on the host. Whatever autocast the caller is in, a turn has
    the types that were planned."""

    def __init__(self, device: torch.device):
        self._device = device
        self._alone = threading.RLock()  # calls of a model call it again: stats in a frame
        self._done: torch.cuda.Event | None = None  # of the last turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        device = self._on_the_device() if self._device.type == "cuda" else nullcontext()
        with self._alone, own_types(self._device), device:
            yield

    @contextmanager
    def _on_the_device(self) -> Iterator[None]:
        here = torch.cuda.current_stream(self._device)
        if self._done is None:
            self._done = torch.cuda.Event()
        else:
            here.wait_event(self._done)
        try:
            yield
        finally:
            self._done.record(here)


def in_turn(method: F) -> F:
    """A method of a model that is one turn of its `_turns`."""

    @wraps(method)
    def taking_turns(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turns.turn():
            return method(self, *args, **kwargs)

    return cast(F, taking_turns)
