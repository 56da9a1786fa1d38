"""Batch: a converted network that is planned for so many streams, and the memory that it reads their frames from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError
from deltaconvert.model import DeltaModel
from deltaconvert.streams.arrivals import Arrivals

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
            # Views, which would take a step 0.1 ms to make.
            self._rows = [frames.split(1) for frames in self._frames]
        self._forms = [(rows[0].shape, rows[0].dtype) for rows in self._rows]
        self._places = frozenset(range(streams))

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
        for place, (frame, (shape, dtype)) in enumerate(zip(frames, self._forms, strict=True)):
            if frame.shape != shape or frame.dtype != dtype:
                raise InputError(
                    f"input {place} of stream {stream!r} is {frame.dtype} {tuple(frame.shape)}; the network takes "
                    f"{dtype} {tuple(shape)}"
                )

    def run(
        self, places: Sequence[int], frames: Sequence[Sequence[Tensor]], starts: Mapping[int, bytes | None]
    ) -> list[Any]:
        """Run one frame of the network, with new frames at these places while the others rest; the output of each of
        them, a batch of one. starts: places that do not go on from their state, but from a snapshot, or with a full
        frame."""
        resting = self._places.difference(places)
        self.model.sleep(resting)  # and wait for the step before
        for rows, new in zip(self._rows, zip(*frames, strict=True), strict=True):
            self._arrivals.land(new, [rows[place] for place in places])
        for place, snapshot in starts.items():
            if snapshot is None:
                self.model.reset(place)
            else:
                self.model.restore(place, snapshot)
        if starts:
            self.model.sleep(resting)  # who starts over has waked all
        return _outputs_at(places, self._call(self._frames), self.model.streams)

    def blank(self, place: int) -> None:
        """Forget the frame at a place: the network raised on it, and must not meet it again."""
        for rows in self._rows:
            rows[place].zero_()

    @torch.no_grad()
    def _call(self, frames: list[Tensor]) -> Any:
        args, kwargs = self.model.signature.call(frames)
        return self.model(*args, **kwargs)


def _outputs_at(places: Sequence[int], outputs: Any, streams: int) -> list[Any]:
    """The output of each place, nested as the network's."""
    if isinstance(outputs, Tensor):
        return _rows_at(places, outputs, streams)
    leaves, spec = pytree.tree_flatten(outputs)
    columns = [_rows_at(places, leaf, streams) for leaf in leaves]
    return [pytree.tree_unflatten(row, spec) for row in zip(*columns, strict=True)]


def _rows_at(places: Sequence[int], leaf: Any, streams: int) -> list[Any]:
    """Large ones are copies: else the last output of a stream that sleeps would keep those of all others in memory."""
    if not isinstance(leaf, Tensor):
        return [leaf] * len(places)
    rows = [leaf[place : place + 1] for place in places]
    if streams == 1 or leaf.nbytes <= SHARED_BYTES:
        return rows
    own = [torch.empty_like(row) for row in rows]
    torch._foreach_copy_(own, rows)
    return own
