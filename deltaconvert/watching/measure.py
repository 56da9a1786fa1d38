"""Measures a converted network against the dense one, and notes the environment of a measurement."""

from __future__ import annotations

import copy
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import deltaconvert
from deltaconvert.metrics import apart, relative
from deltaconvert.model import DeltaModel
from deltaconvert.signature import tensors_of
from deltaconvert.tracing.parts import Part

BASELINE = "the same network dense: batch norm folded, channels_last, no_grad, same threads"
STEP = (0.031, 0.047)  # how far the box of a benchmark moves a frame, in shares of the height and the width


class Dense:
    """The dense network to compare with: the converted one's own graph, every frame computed in full."""

    def __init__(self, model: DeltaModel):
        self.graph = copy.deepcopy(model.graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in list(self.graph.modules()):
            for name, child in module.named_children():
                if isinstance(child, Part):
                    setattr(module, name, child.dense)

    def __call__(self, *frames: Tensor) -> list[Tensor]:
        """The output tensors in the order of their leaves."""
        with torch.no_grad():
            last = torch.channels_last
            return list(
                self.graph(*(f.contiguous(memory_format=last) if f.dim() == 4 else f for f in frames))
            )


@dataclass
class Difference:
    """How far outputs are from the dense ones, over all frames: the largest absolute, and the relative L2."""

    maximum: float = 0.0
    square: float = 0.0
    reference: float = 0.0
    frames: int = 0

    def add(self, ours: Any, dense: Sequence[Tensor]) -> None:
        """ours: a network's output, nested as it likes; dense: its tensors. Outputs that differ in shape
        count as infinitely far apart."""
        self.frames += 1
        tensors = tensors_of(ours)
        for a, b in zip(tensors, dense, strict=True):
            if a.shape != b.shape:
                self.maximum = math.inf
            elif a.numel():
                square, reference, maximum = apart(a, b).tolist()
                self.maximum = max(self.maximum, maximum)
                self.square, self.reference = self.square + square, self.reference + reference

    @property
    def relative(self) -> float:
        if math.isinf(self.maximum):
            return math.inf
        return relative(self.square, self.reference)

    def to_json(self) -> dict[str, float | None]:
        if not self.frames or math.isinf(self.maximum):
            return {"max": None, "relative_l2": None}
        return {"max": self.maximum, "relative_l2": self.relative}


def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """(result of the call, milliseconds it took)."""
    begin = time.perf_counter()
    result = call(*args, **kwargs)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, (time.perf_counter() - begin) * 1e3


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least that share of the values at or below it; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def environment() -> dict[str, Any]:
    """Where and how something was measured: date, command, versions, processor, threads."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["deltaconvert", *sys.argv[1:]]),
        "deltaconvert": deltaconvert.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class BenchRow:
    """One density of a benchmark. asked and density: share of the pixels that move, as wanted and as the
    network saw it; work: share of the dense multiply-accumulates; times in milliseconds, medians; ratio:
    dense / delta."""

    asked: float
    density: float
    work: float
    dense_ms: float
    delta_ms: float
    ratio: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def bench(
    model: DeltaModel,
    densities: Sequence[float],
    *,
    frames: int = 10,
    normalise: Callable[[Tensor], Tensor] = lambda image: image,
) -> Iterator[BenchRow]:
    """Time a network on a textured box that moves over a still textured background, against the dense
    network.

    densities: shares 0..1 of the pixels that change from frame to frame. frames: timed ones at each.
    normalise: an image (N, C, H, W) in 0..1 to what the network takes.
    The two run in turn, frame by frame, so that what disturbs the machine disturbs both.
    """
    dense = Dense(model)
    for asked in densities:
        model.reset()
        generator = torch.Generator().manual_seed(0)
        changed: list[float] = []
        work: list[float] = []
        times: dict[str, list[float]] = {"dense": [], "delta": []}
        for number, inputs in enumerate(_scene(model, asked, frames + 2, generator)):
            inputs = [(normalise(x) if x.dim() == 4 else x).to(model.device) for x in inputs]
            args, kwargs = model.signature.call(inputs)
            for name in ("dense", "delta") if number % 2 else ("delta", "dense"):
                _, spent = timed(dense, *inputs) if name == "dense" else timed(model, *args, **kwargs)
                if number > 1:  # the first frame is full, the second warms up
                    times[name].append(spent)
            if number > 1:
                changed.append(input_density(model))
                work.append(model.stats().work)
        slow, fast = (quantile(times[name], 0.5) for name in ("dense", "delta"))
        yield BenchRow(asked, sum(changed) / frames, sum(work) / frames, slow, fast, slow / fast)


def input_density(model: DeltaModel) -> float:
    """Share of the frame's pixels that changed in the last frame, at the first node that compares."""
    for mask in model.masks().values():
        return float(mask.float().mean())
    return 1.0


def _scene(
    model: DeltaModel, density: float, frames: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    still = [_texture(shape, generator).to(dtype) for shape, dtype in model.example]
    for number in range(frames):
        inputs = []
        for frame in still:
            frame = frame.clone()
            if frame.dim() == 4 and density > 0:
                _move_box(frame, density, number, generator)
            inputs.append(frame)
        yield inputs


def _move_box(frame: Tensor, density: float, number: int, generator: torch.Generator) -> None:
    """Paint the box of that frame; it shows the background again where it was: both count as changed."""
    height, width = frame.shape[2:]
    side = math.sqrt(density)
    if density < 1:  # the union with the last place has the area (side + step)^2 - 2 step^2, roughly
        side = max(0.0, side - sum(STEP) / 2)
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    top = round(number * STEP[0] * height) % (height - rows + 1)
    left = round(number * STEP[1] * width) % (width - columns + 1)
    box = _texture((*frame.shape[:2], rows, columns), generator)
    frame[:, :, top : top + rows, left : left + columns] = box.to(frame.dtype)


def _texture(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Coarse and fine structure in 0..1, as a photograph has."""
    fine = torch.rand(tuple(shape), generator=generator)
    if len(shape) != 4:
        return fine
    coarse = torch.rand(*shape[:2], max(2, shape[2] // 16), max(2, shape[3] // 16), generator=generator)
    return (3 * F.interpolate(coarse, tuple(shape[2:]), mode="bilinear", align_corners=False) + fine) / 4
