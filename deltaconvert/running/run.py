"""run: frame after frame through the program of their size, and the state of their streams."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from deltaconvert.errors import DeltaConvertError, InputError, first_line
from deltaconvert.running import snapshot
from deltaconvert.running.frozen import Frozen
from deltaconvert.running.intake import Intake, sizes_of, sizes_text
from deltaconvert.running.memory import within_memory
from deltaconvert.running.monitor import Monitor
from deltaconvert.running.plans import Plans
from deltaconvert.running.turns import Turns, in_turn
from deltaconvert.signature import Signature
from deltaconvert.stats import Tally
from deltaconvert.thresholds import Thresholds
from deltaconvert.tracing import parts

R = TypeVar("R", bound="Running")


class Running(Frozen):
    """A converted network on flat frames: flat inputs in, flat outputs out, state in between."""

    def __init__(
        self,
        graph: fx.GraphModule,
        signature: Signature,
        frames: Sequence[Tensor],
        thresholds: Thresholds,
        backend: ModuleType,
        keep_dense: Sequence[str] = (),
        settled: dict[Any, Any] | None = None,
    ):
        """settled: what programs found by measuring, shared by models of the same network."""
        super().__init__()
        self.graph = graph  # the dense network in its normal form, for every input size
        self.signature, self.keep_dense = signature, tuple(keep_dense)
        self.example = [(tuple(frame.shape), frame.dtype) for frame in frames]
        # Plain JSON that a saved file carries along: where the network came from.
        self.info: dict[str, Any] = {}
        self._intake = Intake.of(signature, frames)
        self._plans = Plans(graph, thresholds, backend, self.keep_dense, {} if settled is None else settled)
        self._begin(frames)

    def _begin(self, frames: Sequence[Tensor]) -> None:
        self._turns = Turns(self.device)
        self._interrupted = False
        self._monitor: Monitor | None = None
        with self._turns.turn():
            self._start(frames)
        super().train(False)

    def _start(self, frames: Sequence[Tensor]) -> None:
        """A program for frames of this size, with fresh state."""
        self._program, self._size, self._tally = self._plans.program(frames), sizes_of(frames), Tally()
        self._unseen = set(range(self.streams))  # the streams that have had no frame since they began

    @property
    def device(self) -> torch.device:
        """Where its frames have to be."""
        return self._intake.forms[0][2]

    @property
    def streams(self) -> int:
        """The number of streams: the batch size of the frames."""
        return self._program.plan.streams

    def _homes(self) -> Iterable[tuple[torch.dtype, torch.device]]:
        weights = (*self.graph.parameters(), *self.graph.buffers())
        inputs = ((dtype, device) for _, dtype, device in self._intake.forms)
        return (*((value.dtype, value.device) for value in weights), *inputs)

    # ---- frames

    def frame(self, frames: Sequence[Tensor]) -> list[Any]:
        """The call on flat inputs, as the signature flattens them; the flat outputs, which are the caller's."""
        return self.frame_for(frames, lambda lent: self._program.own(lent))

    def check_frames(self, frames: Sequence[Tensor]) -> None:
        """InputError for flat inputs that the network does not take."""
        self._intake.check(frames)

    def lent_frame(self, frames: Sequence[Tensor]) -> list[Any]:
        """The same without a copy of the outputs: the next frame writes to them, and nobody else may."""
        return self.frame_for(frames, lambda lent: lent)

    def frame_for(self, frames: Sequence[Tensor], taken: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """taken: makes what the caller gets of the lent outputs, before another call may run."""
        self._intake.check(frames)
        # Outputs are ordinary tensors, and state made under inference_mode could not be written outside it.
        with torch.inference_mode(False), torch.no_grad(), self._turns.turn(), within_memory("a frame"):
            frames = self._intake.bring(frames)
            if sizes_of(frames) != self._size:
                self._resize(frames)
            if self._interrupted:
                self._program.reset()
            self._interrupted = True  # stays so if the frame raises half-way
            outputs = taken(self._program.run(frames))
            self._interrupted = False
            self._unseen.clear()
            self._tally.add(self._program)
            if self._monitor is not None and self._monitor.due():
                with parts.dense_parts(self.graph):
                    self._monitor.look(self._program.plan, frames, outputs)
        return outputs

    def _resize(self, frames: Sequence[Tensor]) -> None:
        before, sizes = self._size, sizes_of(frames)
        known = sizes in self._plans
        try:
            self._start(frames)
        except (DeltaConvertError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            last, channels = [size[3:] for size in sizes], [size[1:2] for size in before]
            slip = "; if its colours come last: frame.permute(0, 3, 1, 2)" if last == channels else ""
            raise InputError(
                f"the network cannot run on inputs of shape {sizes_text(sizes)} (it last ran on {sizes_text(before)})"
                f"{slip}: {first_line(error)}"
            ) from error
        if not known:
            warnings.warn(
                f"the input size changed from {sizes_text(before)} to {sizes_text(sizes)}: "
                "planned anew, the state starts over",
                stacklevel=7,
            )

    def output_forms(self, sizes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each flat output for inputs of these sizes, which are planned for if they are new."""
        frames = self._intake.blank(sizes)
        with torch.inference_mode(False), torch.no_grad(), self._turns.turn():
            self._intake.check(frames)
            outputs: Any = self._plans.plan(frames).graph.graph.output_node().args[0]
        return [(tuple(output.meta["shape"]), output.meta["dtype"]) for output in outputs]

    def blank_frames(self) -> list[Tensor]:
        """Zeros of the shapes, types and device of its inputs, flat."""
        return self._intake.blank(self._size)

    def frame_buffers(self) -> list[Tensor]:
        """Memory that frames are never copied from, flat: fill it and call the network with it.

        On a CUDA device it belongs to the frame's graph, which the first frame makes, and stays the same until the size
        changes. Write to it on the stream that calls the network: what was written before a call is its frame. Other
        frames need no copy either if they have the layout of the first one and an address divisible by 32, and if the
        network only compares them; they may be overwritten or freed by what follows on that stream. On other devices
        these are new tensors.
        """
        found = self._program.buffers
        if found == []:
            raise InputError("there is no graph to fill before the first frame: call the network once")
        return self.blank_frames() if found is None else found

    # ---- the state of streams

    @in_turn
    def reset(self, stream: int | None = None) -> None:
        """Forget the last frames, of one stream (its index in the batch) or of all: the next one is full."""
        if stream is not None:
            self._check_stream(stream)
        self._program.reset(slice(None) if stream is None else slice(stream, stream + 1))
        self._unseen |= set(range(self.streams)) if stream is None else {stream}
        for part in parts.parts_of(self.graph).values():
            part.delta.reset(stream)

    @in_turn
    def sleep(self, streams: Collection[int]) -> None:
        """Declare that the images of `streams` (indices in the batch) are those of the frame before: they are not
        compared, and a gate does not learn from them. It holds until the next call of `sleep`, or until a stream is
        reset or restored. A stream that begins, or was reset, has no frame before: it does not sleep."""
        if not isinstance(streams, Iterable):
            raise InputError(f"streams is {streams!r}: give a list of them, [{streams!r}]")
        count = self.streams
        # A pool of a thousand cameras passes all of them in every step: a call for each would take longer than the
        # rest.
        for doubtful in [stream for stream in streams if type(stream) is not int or not 0 <= stream < count]:
            self._check_stream(doubtful)
        self._program.sleep(set(streams) - self._unseen if self._unseen else streams)

    @in_turn
    def snapshot(self, stream: int = 0) -> bytes:
        """What `stream` (its index in the batch) has seen, for `restore` in this process or another.

        As large as the stream's share of the state; see deltaconvert.running.snapshot.
        """
        self._check_stream(stream)
        if self._interrupted:
            self._program.reset()
        return snapshot.pack(self._program, self._fingerprint, stream)

    @in_turn
    def restore(self, stream: int, taken: bytes) -> None:
        """Let `stream` go on from a snapshot: its next frame recomputes what changed since the snapshot was taken.

        InputError, with the state untouched, for a snapshot of another network, size or backend.
        """
        self._check_stream(stream)
        state = snapshot.unpack(self._program, self._fingerprint, taken)
        with torch.inference_mode(False), torch.no_grad():
            self._program.go_on_from([(stream, state)])
        self._unseen.discard(stream)

    @in_turn
    def take_over(self, other: Running) -> None:
        """Let the streams of `other`, which for_streams made this network from, go on here under their numbers.

        Where the two batch sizes are planned differently they start over: their next frame is full.
        """
        ours, theirs = self._program, other._program
        if other._interrupted or ours.forms() != theirs.forms():
            return
        with torch.inference_mode(False), torch.no_grad(), other._turns.turn():
            ours.go_on_from((stream, theirs.state_of(stream)) for stream in range(other.streams))

    @cached_property
    def _fingerprint(self) -> str:
        return snapshot.fingerprint(self.graph)

    def _check_stream(self, stream: int) -> None:
        if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream < self.streams:
            raise InputError(
                f"there is no stream {stream!r}: the frames have {self.streams} (0 to {self.streams - 1})"
            )

    def __deepcopy__(self: R, memo: dict[int, Any]) -> R:
        """A network of its own with the same plans, which has seen no frame yet."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin.graph = copy.deepcopy(self.graph, memo)
        twin.signature, twin.keep_dense, twin._intake = self.signature, self.keep_dense, self._intake
        twin.example, twin.info = list(self.example), dict(self.info)
        twin._plans = self._plans.twin(twin.graph, memo)
        twin._begin(self.blank_frames())
        return twin
