"""Brings frames to the network's device as they arrive, in parallel to what runs there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class Arrivals:
    """Brings frames to a device on a CUDA stream of its own, so that no step waits for a copy that could have been made
    during the step before. On the CPU there is nothing to do.

    One thread may serve a thousand cameras, so little is done for each frame: frames on the device are noted by the
    stream that made them, or not at all if the same stream reads them, and one event keeps the memory of all frames of
    a step."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._index = self._stream.device.index if self._stream is not None else 0
        self._lock = threading.Lock()
        # Of each stream that made frames, by its address, what stands behind the last of them.
        self._made: dict[int, torch.cuda.Event] = {}
        # The stream that reads frames, and the one that did before: who saw that one read may bring his frame now.
        self._reader: torch.cuda.Stream | None = None
        self._before: torch.cuda.Stream | None = None
        self._read_at: int | None = None  # the reader's address
        # To ask for the current stream takes 8 us (a Xeon of an H100's host), for its address a tenth of that.
        self._at = lru_cache(maxsize=64)(lambda address: torch.cuda.current_stream(device))
        # Frames of a step, until what stands behind it has come.
        self._read: deque[tuple[torch.cuda.Event, Sequence[Any]]] = deque()

    def bring(self, frames: list[Tensor]) -> list[Tensor]:
        """The frames on the device, or being copied there. Called from any thread."""
        if self._stream is None:
            return frames
        on_device = [frame for frame in frames if frame.is_cuda]
        if on_device:
            self._note()  # the caller's work on them comes first
        if len(on_device) == len(frames):
            return frames
        with torch.cuda.stream(self._stream):
            return [frame.to(self._device, non_blocking=True) for frame in frames]

    def wait(self) -> None:
        """Let what is launched from now on wait for the frames that were brought before."""
        if self._stream is None:
            return
        address = torch._C._cuda_getCurrentRawStream(self._index)
        here = self._at(address)
        with self._lock:
            made, self._made = self._made, {}
            if address != self._read_at:
                self._before, self._reader, self._read_at = self._reader, here, address
        for event in made.values():
            here.wait_event(event)
        here.wait_stream(self._stream)
        if self._before is not None:
            here.wait_stream(self._before)

    def keep(self, frames: Sequence[Any]) -> None:
        """Keep the memory of these frames, however nested, until what was launched so far has run."""
        if self._stream is None:
            return
        here = self._at(torch._C._cuda_getCurrentRawStream(self._index))
        with self._lock:
            while self._read and self._read[0][0].query():
                self._read.popleft()
            self._read.append((here.record_event(), frames))

    def _note(self) -> None:
        address = torch._C._cuda_getCurrentRawStream(self._index)
        if address == self._read_at:
            return
        with self._lock:
            if address not in self._made:
                self._made[address] = torch.cuda.Event()
            self._made[address].record(self._at(address))
