"""The fastest of several kernels for a layer: measured once on this GPU, then read from disk.

The choice decides the order of a sum, so it must not change from run to run. If choices cannot be kept on disk, nothing
is measured, and the first candidate is taken.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deltaconvert
from deltaconvert.backends.alone import alone
from deltaconvert.backends.cuda.conv_kernels import Head
from deltaconvert.backends.cuda.kernels import on_current_stream, own_stream, source_of
from deltaconvert.backends.cuda.marks import Listed, list_of
from deltaconvert.backends.cuda.recording import capturing
from deltaconvert.backends.cuda.tail import Tail

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The sources that a choice depends on.
SOURCES = (
    "conv_wgmma.cu",
    "conv_tiles.cu",
    "conv_exact.cu",
    "depthwise.cu",
    "depthwise_products.cu",
    "octets.cu",
)
# The boxes that a choice is measured for, by their share of the frame, the usual one first; and the weight of the time
# of each: most frames should change few pixels. A candidate slower than the best by SLOW at the usual box is not
# chosen.
BOXES = {0.05: 5.0, 0.01: 5.0, 0.25: 1.0, 1.0: 1.0}
SLOW = 2.0
REPEATS = 5
LONG = 5e-4  # seconds from which on a kernel is measured by fewer runs


class Tuner:
    """Chooses among kernels for one program.

    launch(head, tail, edge): the kernel, which is compiled in another thread.
    """

    def __init__(self, launch: Callable[[Head, Tail, Any], Callable[[Tensor, Listed], None]]):
        self._launch = launch
        self._choices: Choices | None = None

    def best(
        self,
        layer: str,
        heads: Mapping[str, Callable[[], Head]],
        sources: Sequence[Any],
        edge: Any,
        tail: Tail,
    ) -> Head:
        """The fastest head from `sources` to `edge`, whose maps are not in use yet, with `tail` behind it."""
        device = edge.values.device
        if self._choices is None:
            self._choices = choices_for(device)
        made: dict[str, Head] = {}
        launches: dict[str, Callable[[Tensor, Listed], None]] = {}

        def seconds(name: str, box: int) -> float:
            if not made:
                made.update((name, head()) for name, head in heads.items())
                launches.update((name, self._launch(moving(head), tail, edge)) for name, head in made.items())
                for source in sources:
                    source.values.normal_(generator=torch.Generator(device).manual_seed(0))
            mapped = edge if made[name].up == (1, 1) else sources[0]
            listed = list_of(mapped.expected[box].expand(len(mapped.values), -1, -1, -1))
            return seconds_of(partial(launches[name], edge.values, listed), device)

        name = self._choices.best(layer, list(heads), seconds, weights_of(edge.expected))
        if made:
            for source in sources:
                source.reset(slice(None))
            edge.reset(slice(None))
        return made[name] if name in made else heads[name]()


def moving(head: Head) -> Head:
    """The kernel with a threshold that every pixel exceeds: repeated runs would otherwise change and store nothing."""
    if not head.compares:
        return head
    *marks, limits = head.more
    # A threshold below 0, which every change exceeds.
    return replace(head, more=(*marks, limits - limits - 1))


class Choices:
    """Choices by layer in a JSON file: {layer: name of the candidate}.

    path: None if there is no place for a file.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._known = self._read()

    def best(
        self,
        layer: str,
        names: Sequence[str],
        seconds: Callable[[str, int], float],
        weights: Mapping[int, float],
    ) -> str:
        """The candidate for a layer. seconds(name, box) measures one; weights: how much each box counts."""
        if self.path is None or len(names) == 1:
            return names[0]
        if self._known.get(layer) not in names:
            self._known = {**self._known, **self._read()}  # another process may have chosen meanwhile
        if self._known.get(layer) not in names:
            self._keep(layer, _fastest(names, seconds, weights), names)
        return self._known[layer] if self.path is not None else names[0]

    def _read(self) -> dict[str, str]:
        try:
            assert self.path is not None
            found = json.loads(self.path.read_text())
            return {str(layer): str(name) for layer, name in found.items()}
        except (AssertionError, OSError, ValueError, AttributeError):  # no file yet, or not one of ours
            return {}

    def _keep(self, layer: str, name: str, names: Sequence[str]) -> None:
        """Write down a choice, unless another process has done so while this one measured: then that choice counts."""
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                known = {**self._known, **self._read()}
                if known.get(layer) not in names:
                    known[layer] = name
                with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                    json.dump(known, file, indent=1, sort_keys=True)
                os.replace(file.name, self.path)
            self._known = known
        except OSError:
            self.path = None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, no other process changes the file. Without flock (Windows) there is no such lock."""
    with open(path.with_suffix(".lock"), "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def choices_for(device: torch.device) -> Choices:
    """The choices for a GPU and a version of the kernels, in $XDG_CACHE_HOME/deltaconvert (~/.cache/deltaconvert)."""
    version = hashlib.sha256(
        "".join([deltaconvert.__version__, *map(source_of, SOURCES)]).encode()
    ).hexdigest()
    gpu = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltaconvert"
    return Choices(folder / f"{gpu}-{version[:16]}.json")


def _fastest(names: Sequence[str], seconds: Callable[[str, int], float], weights: Mapping[int, float]) -> str:
    """The candidate that takes least time over all boxes."""
    usual, *others = weights
    times = {name: weights[usual] * seconds(name, usual) for name in names}
    bound = SLOW * min(times.values())
    times = {name: time for name, time in times.items() if time <= bound}
    for box in others:
        for name in times:
            times[name] += weights[box] * seconds(name, box)
    return min(times, key=lambda name: times[name])


def seconds_of(run: Callable[[], Any], device: torch.device, budget: float = 4e-3) -> float:
    """The seconds of one call, measured in a CUDA graph of several."""
    side, here = own_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    with torch.cuda.stream(side), on_current_stream(device):
        for event in events[:3]:
            event.record()
            run()
        side.synchronize()
        once = events[1].elapsed_time(events[2]) / 1e3
        calls = int(min(20, max(1, budget / REPEATS / once)))
        events = events[: 1 + (REPEATS if once < LONG else 3)]
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, side, device):
            for _ in range(calls):
                run()
        graph.replay()
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        side.synchronize()
    here.wait_stream(side)
    # Else freeing the graph could reset the random state of a capture that another thread begins.
    with alone():
        del graph
    spans = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return statistics.median(spans) / 1e3 / calls


def boxes(size: Sequence[int], device: torch.device) -> Tensor:
    """bool (BOXES, 1, H, W): boxes in the middle of a frame of `size`."""
    return torch.stack([box(size, share, device) for share in BOXES])


def box(size: Sequence[int], share: float, device: torch.device) -> Tensor:
    """bool (1, H, W)."""
    height, width = size
    mask = torch.zeros(1, height, width, dtype=torch.bool, device=device)
    high, wide = (max(1, round(side * share**0.5)) for side in size)
    y, x = (height - high) // 2, (width - wide) // 2
    mask[:, y : y + high, x : x + wide] = True
    return mask


def weights_of(expected: Tensor) -> dict[int, float]:
    """The weight of each box. expected: the changed pixels in a map for each of `boxes`; equal ones are measured
    once."""
    weights: dict[int, float] = {}
    first: dict[int, int] = {}  # number of pixels -> the first box with as many
    for box, (pixels, weight) in enumerate(
        zip(expected.flatten(1).sum(1).tolist(), BOXES.values(), strict=True)
    ):
        same = first.setdefault(pixels, box)
        weights[same] = weights.get(same, 0.0) + weight
    return weights
