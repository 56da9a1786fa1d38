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
    """Calls of one model take turns. Threads wait for each other on the host; on a GPU the work of a call follows that
    of the calls before it, and the device alone waits. In a turn torch.autocast is off: types are those of the
    plan."""

    def __init__(self, device: torch.device):
        self._device = device
        self._alone = threading.RLock()  # reentrant: a call may make another one, such as stats in a frame
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
    """Decorates a method of a model: all of it is one turn."""

    @wraps(method)
    def taking_turns(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turns.turn():
            return method(self, *args, **kwargs)

    return cast(F, taking_turns)
