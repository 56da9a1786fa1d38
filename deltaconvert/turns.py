"""The order of a model's work on a GPU, whichever streams its calls come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


class Turns:
    """Calls of one model take turns: what a call launches follows all that the calls before it launched.

    Nothing is waited for on the host. On the CPU there is nothing to order.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._done: torch.cuda.Event | None = None  # of the last turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        if self._device.type != "cuda":
            yield
            return
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
