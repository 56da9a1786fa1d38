"""Apply a function to many items in several processes, for trials, which share only the clip."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from deltaconvert.errors import DeltaConvertError

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Result]]:
    """(place, function(item)) of each item as they come, from up to `workers` processes of one thread each.

    The processes are forked: each has its own copy of all that the function reads, and nothing is sent there. They end
    with the one that asks, Ctrl-C included.
    """
    crew = min(workers, len(items))
    if crew < 2:
        yield from ((place, function(item)) for place, item in enumerate(items))
        return
    context = multiprocessing.get_context("fork")

    def work(first: int, out: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the one that asks ends the others
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        for place in range(first, len(items), crew):
            out.send((place, function(items[place])))

    left: dict[Connection, int] = {}  # items that each process still owes
    processes = []
    try:
        for first in range(crew):
            end, out = context.Pipe(duplex=False)
            processes.append(context.Process(target=work, args=(first, out), daemon=True))
            processes[-1].start()
            out.close()
            left[end] = len(range(first, len(items), crew))
        yield from _received(left)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(left: dict[Connection, int]) -> Iterator[Any]:
    """What comes out of these ends, as it comes, so many from each."""
    while left:
        ready = wait(list(left))
        for end in [end for end in left if end in ready]:
            try:
                yield end.recv()
            except EOFError:
                raise DeltaConvertError(
                    "a worker ended before its work was done: see what it printed"
                ) from None
            left[end] -= 1
            if not left[end]:
                del left[end]
