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
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from deltaconvert.errors import DeltaConvertError, InputError, StreamError
from deltaconvert.model import DeltaModel, expect_converted
from deltaconvert.running.memory import let_go
from deltaconvert.streams.arrivals import Arrivals
from deltaconvert.streams.batch import Batch


@dataclass
class _Slot:
    """A stream's place in the batch.

    fresh: whether its next frame starts from `snapshot`, or is full, instead of going on from the slot's state.
    waiting: the newest frame that no step has taken, as flat tensors of batch 1.
    taken: the number of the frame that the last step took.
    """

    index: int
    snapshot: bytes | None = None
    fresh: bool = True
    waiting: list[Tensor] | None = None
    waiting_since: float = 0.0
    taken: int = 0
    taken_since: float = 0.0
    output: Any = None
    given: int = 0  # frames handed over
    frames: int = 0
    dropped: int = 0
    failed: int = 0
    latency: float = 0.0


@dataclass(frozen=True)
class StreamStats:
    """frames: computed so far; dropped: replaced by a newer one before a step took them; failed: that raised.

    latency: as Result has it, of the last frame. density: share of the pixels of the input that changed in the last
    step. state_bytes: what is kept for the stream. nonfinite: pixels of its frames that came in with NaN or infinity so
    far, as Stats has them.
    """

    frames: int
    dropped: int
    failed: int
    latency: float
    density: float
    state_bytes: int
    nonfinite: int


class Result(NamedTuple):
    """What a step made of a stream's frame.

    number: the frame's, as `put` gave it. output: as the dense network gives it for a batch of one.
    error: what the network raised on it; then there is no output, and this and the other streams go on with full
    frames.
    latency: seconds from `put` until the step returned. A GPU may still be working then; reading the output waits.
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
        """model: converted for any batch size; it is not changed. streams: how many there is room for from the start.

        limit: the largest number of streams, and of slots: memory may hold 80 where it does not hold 128.
        InputError for a network whose outputs are not one row a stream.
        """
        expect_converted(model)
        if not 1 <= streams <= limit:
            raise InputError(f"streams is {streams}: it is a number from 1 to limit, which is {limit}")
        self._limit = limit
        self._slots: dict[Hashable, _Slot] = {}
        self._waiting: dict[Hashable, _Slot] = {}  # those with a frame that no step has taken
        self._book = threading.Lock()  # guards slots and waiting frames; never held while the network runs
        self._running = threading.RLock()  # guards the network and its state
        self._joining = threading.Lock()  # one stream joins at a time; it may take as long as converting
        self._arrivals = Arrivals(model.device)
        self._batch = Batch(model, min(limit, 1 << (streams - 1).bit_length()), self._arrivals)

    @property
    def capacity(self) -> int:
        """The number of slots: a power of two, or the limit."""
        return self._batch.model.streams

    @property
    def streams(self) -> list[Hashable]:
        return list(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        return stream in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def join(self, stream: Hashable, snapshot: bytes | None = None) -> None:
        """Give `stream` a slot; its first frame is full, or goes on from a snapshot that `snapshot` took.

        If no slot is free, the network is planned for twice as many, while other threads run steps; its streams keep
        their state. Planning takes a part of the time of converting, so ask for room in time. StreamError, with all
        other streams as they were, if the stream is in the pool already, at the limit, or if memory does not suffice.
        """
        with self._joining:
            if stream in self._slots:
                raise StreamError(f"stream {stream!r} is in the pool already: drop it first")
            if len(self._slots) >= self._limit:
                raise StreamError(f"no room for stream {stream!r}: the pool's limit is {self._limit} streams")
            wider = self._wider(stream) if len(self._slots) == self.capacity else None
            self._take_in(stream, snapshot, wider)

    def _take_in(self, stream: Hashable, snapshot: bytes | None, wider: Batch | None) -> None:
        with self._running:
            if wider is not None:
                wider.take_over(self._batch)
                self._batch = wider
            index = min(set(range(self.capacity)) - {slot.index for slot in self._slots.values()})
            if snapshot is not None:  # refused here if it does not fit; used with the first frame
                self._batch.model.restore(index, snapshot)
            self._batch.begin(index)
            with self._book:
                self._slots[stream] = _Slot(index, snapshot)

    def drop(self, stream: Hashable) -> None:
        """Forget a stream; its slot is free for another."""
        with self._running, self._book:
            self._slot(stream)
            del self._slots[stream]
            self._waiting.pop(stream, None)

    def reset(self, stream: Hashable) -> None:
        """Forget what a stream has seen: its next frame is full."""
        with self._running, self._book:
            slot = self._slot(stream)
            slot.fresh, slot.snapshot = True, None

    def put(self, stream: Hashable, *args: Any, **kwargs: Any) -> int:
        """Hand over a stream's newest frame: one call of the network, for a batch of one image. Returns its number.

        It replaces a frame that no step has taken, which counts as dropped. A frame from host memory is copied to the
        device at once. One in pinned memory, or on the network's device, is read in place until the work of its step
        has
        ended: what follows that step on its CUDA stream may overwrite it, and the host may once it has an output.
        InputError, with the stream as it was, for one that does not fit.
        """
        batch = self._batch
        frames = batch.model.signature.flatten(args, kwargs)
        batch.check(stream, frames)
        frames = self._arrivals.bring(frames)
        with self._book:
            slot = self._slot(stream)
            slot.dropped += slot.waiting is not None
            slot.given += 1
            slot.waiting, slot.waiting_since = frames, time.monotonic()
            self._waiting[stream] = slot
            return slot.given

    @property
    def waiting(self) -> bool:
        """Whether a frame waits for a step."""
        return bool(self._waiting)

    def step(self) -> dict[Hashable, Result]:
        """Run one frame of the network over all streams. Returns the results of the streams whose frame waited."""
        with self._running:
            with self._book:
                taken, self._waiting = self._waiting, {}
                frames: dict[Hashable, list[Tensor]] = {}
                for stream, slot in taken.items():
                    assert slot.waiting is not None
                    frames[stream], slot.waiting = slot.waiting, None
                    slot.taken, slot.taken_since = slot.given, slot.waiting_since
            errors = self._computed(taken, frames) if taken else {}
            for stream in errors:
                taken[stream].failed += 1
            return {
                stream: Result(slot.taken, slot.output, None, slot.latency)
                if stream not in errors
                else Result(slot.taken, None, errors[stream], slot.latency)
                for stream, slot in taken.items()
            }

    def latest(self, stream: Hashable) -> Any:
        """A stream's last output; None before its first."""
        return self._slot(stream).output

    def changed(self, stream: Hashable) -> Tensor:
        """bool (H, W): the pixels of a stream's input that changed in the last step."""
        with self._running:
            return self._batch.model.input_masks()[self._slot(stream).index]

    def snapshot(self, stream: Hashable) -> bytes:
        """The state of a stream, for `join` in another pool; see DeltaModel.snapshot."""
        with self._running:
            slot = self._slot(stream)
            if slot.snapshot is not None:
                return slot.snapshot
            if slot.fresh:
                self._batch.model.reset(slot.index)
            return self._batch.model.snapshot(slot.index)

    def stats(self) -> dict[Hashable, StreamStats]:
        """Statistics of each stream. On CUDA this waits for the device."""
        with self._running:
            slots, model = dict(self._slots), self._batch.model
            state = model.state_bytes // self.capacity
            density = model.input_masks().flatten(1).float().mean(1).tolist()
            nonfinite = self._batch.nonfinite()
            return {
                stream: StreamStats(
                    slot.frames,
                    slot.dropped,
                    slot.failed,
                    slot.latency,
                    density[slot.index],
                    state,
                    nonfinite[slot.index],
                )
                for stream, slot in slots.items()
            }

    def _slot(self, stream: Hashable) -> _Slot:
        if stream not in self._slots:
            raise StreamError(f"there is no stream {stream!r} in the pool: join it first")
        return self._slots[stream]

    def _wider(self, stream: Hashable) -> Batch:
        try:
            return self._batch.wider(min(self._limit, 2 * self.capacity))
        except (DeltaConvertError, MemoryError, RuntimeError) as error:
            let_go(error)
            raise StreamError(f"no room for stream {stream!r}: {error}") from error

    def _computed(
        self, taken: Mapping[Hashable, _Slot], frames: Mapping[Hashable, list[Tensor]]
    ) -> dict[Hashable, Exception]:
        """Run frames of the streams `taken`; returns the errors of the streams on which the network raised. If it
        raises on several streams together, each runs again by itself, while the others sleep."""
        try:
            self._run(taken, frames)
        except Exception as error:
            if len(taken) == 1:
                return {stream: error for stream in taken}
            errors: dict[Hashable, Exception] = {}
            for stream, slot in taken.items():
                errors |= self._computed({stream: slot}, frames)
            return errors
        return {}

    def _run(self, taken: Mapping[Hashable, _Slot], frames: Mapping[Hashable, list[Tensor]]) -> None:
        """If the network raises, the places of these streams are cleared and start over."""
        slots = list(taken.values())
        starts = {slot.index: slot.snapshot for slot in slots if slot.fresh}
        try:
            outputs = self._batch.run(
                [slot.index for slot in slots], [frames[stream] for stream in taken], starts
            )
        except BaseException:
            for slot in slots:
                slot.fresh = True
                self._batch.blank(slot.index)
            raise
        now = time.monotonic()
        for slot, output in zip(slots, outputs, strict=True):
            slot.output = output
            slot.fresh, slot.snapshot = False, None
            slot.frames, slot.latency = slot.frames + 1, now - slot.taken_since
