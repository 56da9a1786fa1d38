"""StreamPool: cameras join and leave while the network runs; each has a slot of the batch and state of its own.

    pool = StreamPool(delta)
    pool.join("door")
    pool.put("door", frame)             # as often as the camera likes: the newest frame wins
    for stream, result in pool.step().items():
        ...

All streams share one batch, so what changed in any of them is one list of pixels and weights are read once. A slot
without a new frame keeps its last one: nothing in it changes, and it costs next to nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.arrivals import Arrivals
from deltaconvert.errors import DeltaConvertError, InputError, StreamError
from deltaconvert.model import DeltaModel, expect_converted

SHARED_BYTES = (
    1 << 20
)  # up to here outputs of a step stay rows of one tensor, which lives as long as any of them


@dataclass
class _Slot:
    """A stream's place in the batch.

    fresh: its next frame does not go on from what the slot holds, but from `snapshot`, or is full.
    waiting: the newest frame that no step has taken, as flat tensors of batch 1.
    """

    index: int
    snapshot: bytes | None = None
    fresh: bool = True
    waiting: list[Tensor] | None = None
    waiting_since: float = 0.0
    taken_since: float = 0.0  # since when the frame waited that the last step took
    output: Any = None
    given: int = 0  # frames handed over
    frames: int = 0
    dropped: int = 0
    failed: int = 0
    latency: float = 0.0


@dataclass(frozen=True)
class StreamStats:
    """frames: computed so far; dropped: replaced by a newer one before a step took them; failed: that raised.

    latency: seconds from `put` to the output, of the last frame. density: share of the pixels of the input that
    changed in the last step. state_bytes: what is kept for the stream.
    """

    frames: int
    dropped: int
    failed: int
    latency: float
    density: float
    state_bytes: int


@dataclass(frozen=True)
class Result:
    """What a step made of a stream's frame.

    number: the frame's, as `put` gave it. output: as the dense network gives it for a batch of one.
    error: what the network raised on it, then there is no output; the stream and the others go on from full frames.
    latency: seconds from `put`.
    """

    number: int
    output: Any
    error: Exception | None
    latency: float


class StreamPool:
    """Streams that share a converted network. `put` may be called from any thread, and does not wait for a step.

    A stream's outputs do not depend on the other streams. At another capacity the network is planned anew, which may
    change the last bits of a result.
    """

    def __init__(self, model: DeltaModel, streams: int = 1, *, limit: int = 1024):
        """model: converted for any batch; it stays as it is. streams: how many there is room for at once.

        limit: the largest number of streams, and of slots: memory may hold 80 where it does not hold 128.
        InputError for a network whose outputs are not one row a stream.
        """
        expect_converted(model)
        if not 1 <= streams <= limit:
            raise InputError(f"streams is {streams}: it is a number from 1 to limit, which is {limit}")
        self._limit = limit
        self._slots: dict[Hashable, _Slot] = {}
        self._book = threading.Lock()  # of slots and waiting frames; never held while the network runs
        self._running = threading.RLock()  # of the network and its state
        self._joining = threading.Lock()  # one stream joins at a time; it may take as long as converting
        self._arrivals = Arrivals(model.device)
        self._model, self._batch = _planned(model, min(limit, 1 << (streams - 1).bit_length()))

    @property
    def capacity(self) -> int:
        """The number of slots: a power of two, or the limit."""
        return self._model.streams

    @property
    def streams(self) -> list[Hashable]:
        return list(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        return stream in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def join(self, stream: Hashable, snapshot: bytes | None = None) -> None:
        """Give `stream` a slot; its first frame is full, or goes on from a snapshot that `snapshot` took.

        Where no slot is free, the network is planned for twice as many, beside the steps that other threads run; the
        streams in it keep their state. Planning takes a part of the time of converting: ask for room in time.
        StreamError, with all other streams as they were, if the stream is in the pool, at the limit, or where memory
        does not suffice.
        """
        with self._joining:
            if stream in self._slots:
                raise StreamError(f"stream {stream!r} is in the pool already: drop it first")
            if len(self._slots) >= self._limit:
                raise StreamError(f"no room for stream {stream!r}: the pool's limit is {self._limit} streams")
            wider = self._wider(stream) if len(self._slots) == self.capacity else None
            self._take_in(stream, snapshot, wider)

    def _take_in(
        self, stream: Hashable, snapshot: bytes | None, wider: tuple[DeltaModel, list[Tensor]] | None
    ) -> None:
        with self._running:
            if wider is not None:
                self._move_to(*wider)
            index = min(set(range(self.capacity)) - {slot.index for slot in self._slots.values()})
            if snapshot is not None:  # what does not fit is refused here; it counts from the first frame on
                self._model.restore(index, snapshot)
            with self._book:
                self._slots[stream] = _Slot(index, snapshot)

    def drop(self, stream: Hashable) -> None:
        """Forget a stream; its slot is free for another."""
        with self._running, self._book:
            self._slot(stream)
            del self._slots[stream]

    def reset(self, stream: Hashable) -> None:
        """Forget what a stream has seen: its next frame is full."""
        with self._running, self._book:
            slot = self._slot(stream)
            slot.fresh, slot.snapshot = True, None

    def put(self, stream: Hashable, *args: Any, **kwargs: Any) -> int:
        """Hand over a stream's newest frame: one call of the network, for a batch of one image. Returns its number.

        It replaces a frame that no step has taken, which counts as dropped. Frames from host memory are on their way to
        the device at once; from pinned memory, and on the network's own device, they are read until a step has taken
        them: do not write to them before.
        InputError, with the stream as it was, for one that does not fit.
        """
        frames = self._model.signature.flatten(args, kwargs)
        for place, (frame, row) in enumerate(zip(frames, self._batch, strict=True)):
            if frame.shape != (1, *row.shape[1:]) or frame.dtype != row.dtype:
                raise InputError(
                    f"input {place} of stream {stream!r} is {frame.dtype} {tuple(frame.shape)}; the network takes "
                    f"{row.dtype} {(1, *row.shape[1:])}"
                )
        frames = self._arrivals.bring(frames)
        with self._book:
            slot = self._slot(stream)
            slot.dropped += slot.waiting is not None
            slot.given += 1
            slot.waiting, slot.waiting_since = frames, time.monotonic()
            return slot.given

    @property
    def waiting(self) -> bool:
        """Whether a frame waits for a step."""
        with self._book:
            return any(slot.waiting is not None for slot in self._slots.values())

    def step(self) -> dict[Hashable, Result]:
        """Run one frame of the network over all streams; the results of those whose frame waited, none if none did."""
        with self._running:
            with self._book:
                frames = {s: slot.waiting for s, slot in self._slots.items() if slot.waiting is not None}
                taken = {stream: self._slots[stream] for stream in frames}
                numbers = {stream: slot.given for stream, slot in taken.items()}
                for slot in taken.values():
                    slot.waiting, slot.taken_since = None, slot.waiting_since
            if not taken:
                return {}
            errors: dict[Hashable, Exception] = {}
            try:
                self._run(taken, frames)
            except Exception as error:
                errors = {stream: error for stream in taken}
                if len(taken) > 1:
                    errors = self._one_by_one(taken, frames)
            for stream, slot in taken.items():
                slot.failed += stream in errors
            return {
                stream: Result(
                    numbers[stream],
                    None if stream in errors else slot.output,
                    errors.get(stream),
                    slot.latency,
                )
                for stream, slot in taken.items()
            }

    def latest(self, stream: Hashable) -> Any:
        """A stream's last output; None before its first."""
        return self._slot(stream).output

    def changed(self, stream: Hashable) -> Tensor:
        """bool (H, W): the pixels of a stream's input that changed in the last step."""
        with self._running:
            return self._model.input_masks()[self._slot(stream).index]

    def snapshot(self, stream: Hashable) -> bytes:
        """What a stream has seen, for `join` in another pool; see DeltaModel.snapshot."""
        with self._running:
            slot = self._slot(stream)
            if slot.snapshot is not None:
                return slot.snapshot
            if slot.fresh:
                self._model.reset(slot.index)
            return self._model.snapshot(slot.index)

    def stats(self) -> dict[Hashable, StreamStats]:
        """Of each stream. On CUDA this waits for the device."""
        with self._running:
            slots = dict(self._slots)
            state = self._model.state_bytes // self.capacity
            density = self._model.input_masks().flatten(1).float().mean(1).tolist()
            return {
                stream: StreamStats(
                    slot.frames, slot.dropped, slot.failed, slot.latency, density[slot.index], state
                )
                for stream, slot in slots.items()
            }

    def _slot(self, stream: Hashable) -> _Slot:
        if stream not in self._slots:
            raise StreamError(f"there is no stream {stream!r} in the pool: join it first")
        return self._slots[stream]

    def _wider(self, stream: Hashable) -> tuple[DeltaModel, list[Tensor]]:
        try:
            return _planned(self._model, min(self._limit, 2 * self.capacity))
        except (DeltaConvertError, MemoryError, RuntimeError) as error:
            raise StreamError(f"no room for stream {stream!r}: {error}") from error

    def _move_to(self, model: DeltaModel, batch: list[Tensor]) -> None:
        before, frames = self._model, self._batch
        for wide, narrow in zip(batch, frames, strict=True):
            wide[: len(narrow)] = narrow
        model.take_over(before)
        self._model, self._batch = model, batch

    def _run(self, taken: dict[Hashable, _Slot], frames: dict[Hashable, list[Tensor]]) -> None:
        """Run frames of the streams `taken`. If the network raises, these slots are blank and start over: the frame
        must not meet the network again when another stream's comes."""
        try:
            places = [slot.index for slot in taken.values()]
            resting = set(range(self.capacity)).difference(places)
            self._model.sleep(resting)  # and wait for the step before
            self._fill(places, list(frames.values()))
            for slot in taken.values():
                if slot.snapshot is not None:
                    self._model.restore(slot.index, slot.snapshot)
                elif slot.fresh:
                    self._model.reset(slot.index)
            if any(slot.fresh for slot in taken.values()):
                self._model.sleep(resting)  # a stream that starts over has waked all
            outputs = _call(self._model, self._batch)
        except BaseException:
            for slot in taken.values():
                slot.fresh = True
                for rows in self._batch:
                    rows[slot.index].zero_()
            raise
        now = time.monotonic()
        rows_of = _by_stream(outputs, self.capacity)
        for slot in taken.values():
            slot.output = rows_of(slot.index)
            slot.fresh, slot.snapshot = False, None
            slot.frames, slot.latency = slot.frames + 1, now - slot.taken_since

    def _one_by_one(
        self, taken: dict[Hashable, _Slot], frames: dict[Hashable, list[Tensor]]
    ) -> dict[Hashable, Exception]:
        """The network raised, and nobody knows over whose frame: each stream by itself, the others stand still."""
        errors: dict[Hashable, Exception] = {}
        for stream, slot in taken.items():
            try:
                self._run({stream: slot}, {stream: frames[stream]})
            except Exception as error:
                errors[stream] = error
        return errors

    def _fill(self, places: Sequence[int], frames: Sequence[Sequence[Tensor]]) -> None:
        for rows, new in zip(self._batch, zip(*frames, strict=True), strict=True):
            self._arrivals.wait(new)
            torch._foreach_copy_([rows[place : place + 1] for place in places], list(new))


def _planned(model: DeltaModel, capacity: int) -> tuple[DeltaModel, list[Tensor]]:
    """The network for `capacity` streams, and the memory that it reads frames from. It has run once: unused slots are
    settled, kernels compiled."""
    wider = model.for_streams(capacity)
    batch = wider.blank_frames()
    outputs = _call(wider, batch)
    for place, output in enumerate(pytree.tree_leaves(outputs)):
        if isinstance(output, Tensor) and (output.dim() == 0 or len(output) != capacity):
            raise InputError(
                f"output {place} of the network has shape {tuple(output.shape)} for a batch of {capacity}: "
                "it is not one row a stream. Convert the part of the network before it"
            )
    buffers = wider.frame_buffers()
    return wider, buffers if len(buffers) == len(batch) else batch


def _by_stream(outputs: Any, capacity: int) -> Callable[[int], Any]:
    """The output of each stream, a batch of one. Large ones are copies: else the last output of a stream that sleeps
    would keep those of all others in memory."""
    leaves, spec = pytree.tree_flatten(outputs)
    rows = [leaf.split(1) if isinstance(leaf, Tensor) else [leaf] * capacity for leaf in leaves]
    large = [capacity > 1 and isinstance(leaf, Tensor) and leaf.nbytes > SHARED_BYTES for leaf in leaves]

    def of(index: int) -> Any:
        picked = [
            row[index].clone() if copied else row[index] for row, copied in zip(rows, large, strict=True)
        ]
        return pytree.tree_unflatten(picked, spec)

    return of


@torch.no_grad()
def _call(model: DeltaModel, frames: Sequence[Tensor]) -> Any:
    args, kwargs = model.signature.call(frames)
    return model(*args, **kwargs)
