"""Batch: a converted network that is planned for so many streams, and the memory that it reads their frames from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.arrivals import Arrivals
from deltaconvert.errors import InputError
from deltaconvert.model import DeltaModel

# Up to here outputs stay rows of one tensor, which lives as long as any of them.
SHARED_BYTES = 1 << 20


class Batch:
    """Streams have places in it, from 0 on."""

    def __init__(self, model: DeltaModel, streams: int, arrivals: Arrivals):
        """model: it stays as it is. InputError if one of its outputs is not one row a stream.

        The network runs once: places that nobody has are settled, kernels compiled.
        """
        self.model, self._arrivals = model.for_streams(streams), arrivals
        with torch.inference_mode(False):  # else frames could only be written to under it
            self._frames = self._checked(self.model.blank_frames())
            # Views, which take a step 0.1 ms to make.
            self._rows = [frames.split(1) for frames in self._frames]

    def _checked(self, blank: list[Tensor]) -> list[Tensor]:
        """What frames are written to: the network's own buffers, where it has them, once its outputs were seen."""
        for place, output in enumerate(pytree.tree_leaves(self._call(blank))):
            if isinstance(output, Tensor) and (output.dim() == 0 or len(output) != self.model.streams):
                raise InputError(
                    f"output {place} of the network has shape {tuple(output.shape)} for a batch of {len(blank[0])}: "
                    "it is not one row a stream. Convert the part of the network before it"
                )
        buffers = self.model.frame_buffers()
        return buffers if len(buffers) == len(blank) else blank

    def wider(self, streams: int) -> Batch:
        """The network for more streams; `take_over` gives it the state of these."""
        return Batch(self.model, streams, self._arrivals)

    def take_over(self, before: Batch) -> None:
        """Frames and state of all streams of a narrower one, at the same places."""
        for wide, narrow in zip(self._frames, before._frames, strict=True):
            wide[: len(narrow)] = narrow
        self.model.take_over(before.model)

    def check(self, stream: Hashable, frames: Sequence[Tensor]) -> None:
        """InputError for a frame, as the network's inputs in their order, that does not fit."""
        for place, (frame, row) in enumerate(zip(frames, self._frames, strict=True)):
            if frame.shape != (1, *row.shape[1:]) or frame.dtype != row.dtype:
                raise InputError(
                    f"input {place} of stream {stream!r} is {frame.dtype} {tuple(frame.shape)}; the network takes "
                    f"{row.dtype} {(1, *row.shape[1:])}"
                )

    def run(
        self, frames: Mapping[int, Sequence[Tensor]], starts: Mapping[int, bytes | None]
    ) -> Callable[[int], Any]:
        """Run one frame of the network, with new frames at these places while the others rest; what it returns gives
        the output of a place, a batch of one. starts: places that do not go on from their state, but from a snapshot,
        or with a full frame."""
        resting = set(range(self.model.streams)).difference(frames)
        self.model.sleep(resting)  # and wait for the step before
        for rows, new in zip(self._rows, zip(*frames.values(), strict=True), strict=True):
            self._arrivals.wait(new)
            torch._foreach_copy_([rows[place] for place in frames], list(new))
        for place, snapshot in starts.items():
            if snapshot is None:
                self.model.reset(place)
            else:
                self.model.restore(place, snapshot)
        if starts:
            self.model.sleep(resting)  # who starts over has waked all
        return _by_stream(self._call(self._frames), self.model.streams)

    def blank(self, place: int) -> None:
        """Forget the frame at a place: the network raised on it, and must not meet it again."""
        for rows in self._rows:
            rows[place].zero_()

    @torch.no_grad()
    def _call(self, frames: list[Tensor]) -> Any:
        args, kwargs = self.model.signature.call(frames)
        return self.model(*args, **kwargs)


def _by_stream(outputs: Any, streams: int) -> Callable[[int], Any]:
    """The output of each stream. Large ones are copies: else the last output of a stream that sleeps would keep those
    of all others in memory."""
    leaves, spec = pytree.tree_flatten(outputs)

    def row(leaf: Any, place: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = leaf[place : place + 1]
        return own.clone() if streams > 1 and leaf.nbytes > SHARED_BYTES else own

    return lambda place: pytree.tree_unflatten([row(leaf, place) for leaf in leaves], spec)
