"""Frames on their way to the network: brought to its device as they arrive, beside what runs there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


class Arrivals:
    """Brings frames to a device on a stream of its own, so that no step waits for a copy that could have been done
    while the one before it ran. On the CPU there is nothing to do.

    What is done for each frame is little, since one thread may serve a thousand cameras: those from the device are
    noted by the stream that made them, and what keeps the memory of all frames of a step is one event.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._index = self._stream.device.index if self._stream is not None else 0
        self._lock = threading.Lock()
        # Of each stream that made frames, by its address, what stands behind the last of them.
        self._made: dict[int, torch.cuda.Event] = {}
        # To ask for the current stream takes 8 us (a Xeon of an H100's host), for its address a tenth of that.
        self._at = lru_cache(maxsize=64)(lambda address: torch.cuda.current_stream(device))
        # Frames of a step, until what stands behind their copy has come.
        self._read: deque[tuple[torch.cuda.Event, Sequence[Tensor]]] = deque()

    def bring(self, frames: list[Tensor]) -> list[Tensor]:
        """The frames on the device, or on their way there; from any thread."""
        if self._stream is None:
            return frames
        on_device = [frame.is_cuda for frame in frames]
        with self._lock:
            self._let_go()
            if any(on_device):  # the caller's work on them comes first
                self._note()
        if all(on_device):
            return frames
        with torch.cuda.stream(self._stream):
            return [frame.to(self._device, non_blocking=True) for frame in frames]

    def land(self, frames: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        """Copy frames, brought before, to where the network reads them; all in a few launches."""
        if self._stream is None:
            torch._foreach_copy_(list(rows), list(frames))
            return
        here = torch.cuda.current_stream(self._device)
        with self._lock:
            made, self._made = self._made, {}
        for event in made.values():
            here.wait_event(event)
        here.wait_stream(self._stream)
        torch._foreach_copy_(list(rows), list(frames))
        with self._lock:
            self._read.append((here.record_event(), frames))
            self._let_go()

    def _note(self) -> None:
        address = torch._C._cuda_getCurrentRawStream(self._index)
        if address not in self._made:
            self._made[address] = torch.cuda.Event()
        self._made[address].record(self._at(address))

    def _let_go(self) -> None:
        """Frames that were copied: their memory may be given to others."""
        while self._read and self._read[0][0].query():
            self._read.popleft()
