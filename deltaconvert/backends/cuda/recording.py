"""A frame as one CUDA graph: run once, captured, then replayed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from deltaconvert.backends.alone import alone
from deltaconvert.backends.cuda.capturable import run_and_judge
from deltaconvert.backends.cuda.in_place import Addresses, lies_as, read_in_place
from deltaconvert.backends.cuda.kernels import on_current_stream, own_stream
from deltaconvert.backends.cuda.skipping import behind_frames, body, worth_skipping
from deltaconvert.nodes import path_of, sparsify

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend


class Recording:
    """Plays the steps of one program. The first frame runs them one by one and captures them; later ones replay the
    graph.

    What cannot be captured (a module with its own Python code, an operator that waits for the device) runs after the
    graph, one launch at a time, and so does what depends on it: `outside` names these nodes and why. Steps that compare
    after such a comparing step run there as well, because a list is made after the last comparison before it.

    If it is worth it, a still frame skips a part of the graph (`skipping.py`); `still` says what.
    """

    def __init__(self, device: torch.device, backend: Backend):
        self._device, self._backend = device, backend
        self._known = False  # whether it is known what the graph holds
        self.inputs: dict[int, torch.Tensor] = {}  # slot -> memory that frames can be read from
        self.addresses: Addresses  # the addresses of frames that are read in place
        self._in_place: set[int] = set()  # slots whose frames are read in place
        self._graph: torch.cuda.CUDAGraph | None = None
        # Kept as long as the graph: cuBLAS has a workspace for each stream, which the graph goes on using.
        self._side: torch.cuda.Stream | None = None
        # The inner stream and memory of a graph with a part that is skipped.
        self._kept: tuple[torch.cuda.Stream, Any] | None = None
        self._late: list[Any] = []
        self.outside: dict[str, str] = {}
        self.still: str | None = None  # what a still frame skips, or why nothing; known after the first

    def play(self, steps: Sequence[Any], frame: Any) -> None:
        with torch.cuda.device(self._device):
            if not self._known:
                self._first(steps, frame)
            else:
                self._replay(frame)

    def _first(self, steps: Sequence[Any], frame: Any) -> None:
        self.inputs = {slot: value for slot, value in enumerate(frame.values) if value is not None}
        self.addresses = Addresses(self.inputs.values(), self._device)
        here = torch.cuda.current_stream()
        side = self._side = own_stream(self._device)
        side.wait_stream(here)
        with torch.cuda.stream(side), on_current_stream(self._device):
            self._backend.start()
            early, launches = self._run_and_sort(steps, frame)
            self._backend.finish()
        here.wait_stream(side)
        self.inputs = {slot: value.clone() for slot, value in self.inputs.items()}
        self.addresses.tell(self.inputs.values())
        self._in_place = read_in_place(steps, self.inputs)
        self._still = type(frame)(list(frame.values), list(frame.changed))
        for slot, value in self.inputs.items():
            self._still.values[slot] = value
        try:
            self._capture_best(early, launches)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = f"capturing the frame failed: {str(error).splitlines()[0]}"
            self.outside = {step.node.name: why for step in steps}
            self._late = list(steps)
        self._known = True

    def _run_and_sort(self, steps: Sequence[Any], frame: Any) -> tuple[list[Any], list[int]]:
        """Run the frame. Returns the steps that a graph can hold and how many launches each took; the others are
        late."""
        waiting: dict[fx.Node, str] = {}  # nodes of late steps, and why
        early, launches = [], []
        self._late = []
        compares_late: fx.Node | None = None  # the first late node that compares
        for step in steps:
            before = self._backend.launches
            reason = run_and_judge(step, frame, self._device)
            compares = step.node.target is sparsify or "threshold" in step.node.meta
            if reason is None:
                reason = _waits_for(step.node, waiting, compares_late if compares else None)
            if reason is not None:
                compares_late = compares_late or (step.node if compares else None)
                waiting[step.node] = reason
                self._late.append(step)
            elif step.node.op != "get_attr":
                early.append(step)
                launches.append(max(self._backend.launches - before, 1))
        self.outside = {node.name: reason for node, reason in waiting.items()}
        return early, launches

    def _capture_best(self, steps: Sequence[Any], launches: Sequence[int]) -> None:
        """launches: how many of our kernels each step launched."""
        first = behind_frames(steps)
        count = sum(launches[first:])
        why_not = None
        if first == len(steps):
            why_not = "nothing stands behind the comparison of its frames, or reads them as well"
        elif not worth_skipping(count, max(map(len, self.inputs.values()), default=1)):
            why_not = f"{count} launches take less than asking whether it is still"
        else:
            try:
                self._capture(steps[:first], steps[first:])
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, AttributeError) as error:  # other drivers, other bindings
                why_not = str(error).splitlines()[0]
        self.still = f"a still frame skips {count} of {sum(launches)} launches"
        if why_not is not None:
            self.still = f"a still frame skips nothing: {why_not}"
            self._capture(steps)

    def _capture(self, steps: Sequence[Any], skipped: Sequence[Any] = ()) -> None:
        """skipped: the last steps, if a still frame skips them."""
        if not steps:
            return
        assert self._side is not None
        self._side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        around = own_stream(self._device) if skipped else self._side
        with capturing(graph, around, self._device):
            self._backend.start()
            if skipped:
                self._capture_parts(around, steps, skipped)
            else:
                self._play(steps)
        self._graph = graph

    def _play(self, steps: Sequence[Any]) -> None:
        for step in steps:
            step(self._still)
        if self._late:
            self._backend.join()
        else:
            self._backend.finish()

    def _capture_parts(
        self, around: torch.cuda.Stream, compared: Sequence[Any], skipped: Sequence[Any]
    ) -> None:
        """Capture the steps up to the last that compares a frame, then the conditional part: its lists and later
        steps."""
        assert self._side is not None
        for step in compared[:-1]:
            step(self._still)
        with self._backend.lists_held() as held:
            compared[-1](self._still)
        self._kept = around, torch.cuda.MemPool()
        wake = partial(self._backend.wake, not self._late)
        with body(*self._kept, self._side, wake), self._backend.apart():
            for marks in held:
                self._backend.list_behind(marks)
            self._play(skipped)

    def _replay(self, frame: Any) -> None:
        self.addresses.tell([self._taken(slot, frame.values[slot]) for slot in self.inputs])
        if self._graph is None:
            with on_current_stream(self._device):
                self._backend.start()
        else:
            self._graph.replay()
        for slot, value in enumerate(self._still.values):
            if slot not in self.inputs:
                frame.values[slot] = value
        if self._late:
            with on_current_stream(self._device):
                for step in self._late:
                    step(frame)
                self._backend.finish()

    def _taken(self, slot: int, frame: torch.Tensor) -> torch.Tensor:
        """The frame as the graph reads it: in place if possible, else copied into the graph's memory."""
        own = self.inputs[slot]
        if frame is own or (slot in self._in_place and lies_as(frame, own)):
            return frame
        return own.copy_(frame, non_blocking=True)


def _waits_for(node: fx.Node, waiting: Collection[fx.Node], compares_late: fx.Node | None) -> str | None:
    """The reason why a step that a graph could hold runs after it, or None."""
    late = [source for source in node.all_input_nodes if source in waiting]
    if late:
        return f"it reads {', '.join(map(path_of, late))}"
    return None if compares_late is None else f"it compares behind {path_of(compares_late)}"


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    with alone(), recording, on_current_stream(device):
        yield
