"""Frames on their way to the network: brought to its device as they arrive, beside what runs there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Arrivals:
    """Brings frames to a device on a stream of its own, so that no step waits for a copy that could have been done
    while the one before it ran. On the CPU there is nothing to do."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def bring(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """The frames on the device, or on their way there; from any thread."""
        if self._stream is None:
            return list(frames)
        if any(frame.is_cuda for frame in frames):  # the caller's work on them comes first
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            return [frame.to(self._device, non_blocking=True) for frame in frames]

    def wait(self, frames: Sequence[Tensor]) -> None:
        """Work launched from here on finds all frames brought so far; `frames` are those that it reads."""
        if self._stream is None:
            return
        here = torch.cuda.current_stream(self._device)
        here.wait_stream(self._stream)
        for frame in frames:
            frame.record_stream(here)  # their memory is not given to others before
