"""The kernels of a converted network's frame: when each ran, and which layer launched it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

import deltaconvert
from benchmarks.gpu import model_and_frame
from benchmarks.gpu_dense import alone
from benchmarks.gpu_frames import video
from benchmarks.gpu_record import Unit
from benchmarks.launches import traced
from deltaconvert import lower
from deltaconvert.backends import cuda

FRAMES = 8  # only the last one is looked at
IDLE = 30.0  # microseconds; kernels of a graph never wait so long for each other


class Launch(NamedTuple):
    """layer: path of the step; kernel: the name of its kernel."""

    layer: str
    kernel: str


class Event(NamedTuple):
    """A kernel or a copy on the device; times are in microseconds."""

    name: str
    start: float
    end: float


def prepared(unit: Unit) -> tuple[deltaconvert.DeltaModel, Any, list[Launch]]:
    """A converted network whose graph is captured, its frames at a density, its launches in their order."""
    model, base = model_and_frame(unit)
    delta = deltaconvert.convert(model, base)
    with noted() as launches, alone():
        delta(base)
    return delta, lambda density: video(base, density, FRAMES), [*launches]


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Collects the launches of the last frame that is played or captured in this context, in their order."""
    found: list[Launch] = []
    here = [""]
    start, step, launch = cuda.Backend.start, lower.Step.__call__, cuda.Backend.launch

    def start_anew(backend: Any) -> None:
        found.clear()
        here[0] = ""
        start(backend)

    def note_layer(self: Any, frame: Any) -> None:
        here[0] = self.node.meta.get("path", self.node.name)
        step(self, frame)

    def note_launch(backend: Any, kernel: Any, *args: Any, **options: Any) -> None:
        lists = kernel.name in ("spread", "spread_alone", "list", "tally", "wake")
        found.append(Launch("" if lists else here[0], kernel.name))
        launch(backend, kernel, *args, **options)

    with (
        mock.patch.object(cuda.Backend, "start", start_anew),
        mock.patch.object(lower.Step, "__call__", note_layer),
        mock.patch.object(cuda.Backend, "launch", note_launch),
    ):
        yield found


def timeline(delta: Any, frames: Sequence[torch.Tensor]) -> list[Event]:
    """The last frame's kernels and copies, by their start."""
    for frame in frames[:-1]:
        delta(frame)
    (buffer,) = delta.frame_buffers()
    buffer.copy_(frames[-1])
    with alone():
        events = traced(lambda: delta(buffer))
    return without_idle([Event(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events])


def without_idle(events: Sequence[Event]) -> list[Event]:
    """The same events, with gaps longer than IDLE closed."""
    found, end, cut = [], events[0].start, 0.0
    for event in events:
        gap = event.start - end
        cut += gap if gap > IDLE else 0.0
        end = max(end, event.end)
        found.append(Event(event.name, event.start - cut, event.end - cut))
    return found


def by_layer(events: Sequence[Event], launches: Sequence[Launch]) -> dict[str, list[float]]:
    """What the kernels of each layer add to the chain. Kernels of torch belong to the step that stores their result."""
    found: dict[str, list[float]] = {}
    end = events[0].start
    for layer, event in zip(layers_of([event.name for event in events], launches), events, strict=True):
        found.setdefault(layer, []).append(max(0.0, event.end - end))
        end = max(end, event.end)
    return found


def layers_of(names: Sequence[str], launches: Sequence[Launch]) -> list[str]:
    """The layer that launched each event: kernels of one name run in the order of their launches.

    A kernel of torch belongs to the next kernel of ours; those after the last of ours belong to no layer.
    """
    waiting: dict[str, list[str]] = {}
    for launch in reversed(launches):
        waiting.setdefault(launch.kernel, []).append(launch.layer)
    layers: list[str | None] = []
    for name in names:
        ours = waiting.get(name.split("(")[0])
        layers.append(ours.pop() if ours else None)
    following = ""
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if layer is None:
            layers[i] = following
        elif layer:
            following = layer
    return [layer or "" for layer in layers]
