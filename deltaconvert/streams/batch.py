"""Batch: a converted network planned for a number of streams, and the memory that it reads their frames from."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError
from deltaconvert.model import DeltaModel
from deltaconvert.streams.arrivals import Arrivals

# Up to this size outputs stay rows of one tensor, which lives as long as any of them.
SHARED_BYTES = 1 << 20


class Batch:
    """A network for a number of streams, each with a place, counted from 0."""

    def __init__(self, model: DeltaModel, streams: int, arrivals: Arrivals):
        """model: it is not changed. InputError if one of its outputs is not one row a stream.

        The network runs once, so that kernels are compiled and empty places need no work later.
        """
        self.model, self._arrivals = model.for_streams(streams), arrivals
        with torch.inference_mode(False):  # else frames could only be written to under it
            self._frames = self._checked(self.model.blank_frames())
            # Views, which would take a step 0.1 ms to make.
            self._rows = [frames.split(1) for frames in self._frames]
        self._forms = [(place, rows[0].shape, rows[0].dtype) for place, rows in enumerate(self._rows)]
        self._places = frozenset(range(streams))
        # Of each place, what the model had counted when its stream began.
        self._counted_before = [0] * streams
        # Of each flat output, by its number, what it was in the last frame, and views of its rows.
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Sequence[Tensor]]] = {}

    def _checked(self, blank: list[Tensor]) -> list[Tensor]:
        """Check the outputs by a first run. Returns what frames are written to: the network's own buffers, if it has
        any."""
        args, kwargs = self.model.signature.call(blank)
        with torch.no_grad():
            outputs = self.model(*args, **kwargs)
        self._is_one = isinstance(outputs, Tensor)
        for place, output in enumerate(pytree.tree_leaves(outputs)):
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
        """Take over frames and state of all streams of a narrower batch, at the same places."""
        for wide, narrow in zip(self._frames, before._frames, strict=True):
            wide[: len(narrow)] = narrow
        self.model.take_over(before.model)
        for place, count in enumerate(before.nonfinite()):
            self._counted_before[place] -= count

    def begin(self, place: int) -> None:
        """A stream has come to this place: what the model counted of the one before is not its own."""
        self._counted_before[place] += self.nonfinite()[place]

    def nonfinite(self) -> list[int]:
        """Of the stream at each place, the pixels that came in with NaN or infinity so far."""
        return [now - then for now, then in zip(self.model.nonfinite(), self._counted_before, strict=True)]

    def check(self, stream: Hashable, frames: Sequence[Tensor]) -> None:
        """InputError for a frame, as the network's inputs in their order, that does not fit."""
        for frame, (place, shape, dtype) in zip(frames, self._forms, strict=True):
            if frame.shape != shape or frame.dtype != dtype:
                raise InputError(
                    f"input {place} of stream {stream!r} is {frame.dtype} {tuple(frame.shape)}; the network takes "
                    f"{dtype} {tuple(shape)}"
                )

    def run(
        self, places: Sequence[int], frames: Sequence[Sequence[Tensor]], starts: Mapping[int, bytes | None]
    ) -> list[Any]:
        """Run one frame of the network with new frames at these places, while the others sleep. Returns their outputs,
        each a batch of one. starts: the places that begin from a snapshot, or with a full frame."""
        resting = self._places.difference(places)
        self.model.sleep(resting)  # and wait for the step before
        self._arrivals.wait()
        for rows, new in zip(self._rows, zip(*frames, strict=True), strict=True):
            torch._foreach_copy_([rows[place] for place in places], list(new))
        for place, snapshot in starts.items():
            if snapshot is None:
                self.model.reset(place)
            else:
                self.model.restore(place, snapshot)
        if starts:
            self.model.sleep(resting)  # a reset or restore has waked all
        try:
            columns = self.model.frame_for(self._frames, partial(self._rows_of, places))
        finally:
            self._arrivals.keep(frames)
        if self._is_one and len(columns) == 1:
            return list(columns[0])
        return [self.model.signature.unflatten(row) for row in zip(*columns, strict=True)]

    def blank(self, place: int) -> None:
        """Forget the frame at a place: the network raised on it, and must not meet it again."""
        for rows in self._rows:
            rows[place].zero_()

    def _rows_of(self, places: Sequence[int], outputs: Sequence[Any]) -> list[Sequence[Any]]:
        """For each flat output its part for each place, in memory that the next frame does not write to."""
        return [self._rows_at(places, number, output) for number, output in enumerate(outputs)]

    def _rows_at(self, places: Sequence[int], number: int, output: Any) -> Sequence[Any]:
        """Large rows are copied one by one: otherwise the last output of a sleeping stream would keep the rows of all
        others in memory."""
        if not isinstance(output, Tensor):
            return _leaves_at(places, output)
        if output.nbytes <= SHARED_BYTES:
            whole = output.clone()
            return [whole[place : place + 1] for place in places]
        rows = self._views(places, number, output)
        own = [torch.empty_like(row) for row in rows]
        torch._foreach_copy_(own, rows)
        return own

    def _views(self, places: Sequence[int], number: int, output: Tensor) -> list[Tensor]:
        """Views of an output's rows. If it is the same tensor in every frame, as with a CUDA graph, they are made
        once, in
        the second frame: each takes a microsecond."""
        last, views = self._outputs.get(number, (None, ()))
        if last is None or last() is not output:
            self._outputs[number] = weakref.ref(output), ()
            return [output[place : place + 1] for place in places]
        if not views:
            views = output.split(1)
            self._outputs[number] = last, views
        return [views[place] for place in places]


def _leaves_at(places: Sequence[int], output: Any) -> Sequence[Any]:
    """The same for outputs that are no tensors: numbers, and what islands return."""
    leaves, spec = pytree.tree_flatten(output)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        return [output] * len(places)

    def row(place: int) -> Any:
        own = (leaf[place : place + 1].clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return pytree.tree_unflatten(own, spec)

    return [row(place) for place in places]
