"""Milliseconds of a frame, dense and converted: by this processor or by a GPU."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import deltaconvert
from benchmarks.curves.run import Run
from benchmarks.curves.simple import smaller
from benchmarks.engines import ENGINES, Network, prepare
from benchmarks.gpu_accuracy import FIRST, batches, played, settling, size_of
from benchmarks.gpu_dense import engines, raced
from deltaconvert.thresholds import Thresholds
from deltaconvert.watching.measure import timed

WARM = 4  # frames, before those of a dense engine that are timed on a processor


class Clock(Protocol):
    def dense(self, scale: float = 1.0) -> dict[str, float]:
        """Of each engine, on frames at a share of the side; to make them smaller is not timed."""

    def converted(self, thresholds: Thresholds) -> dict[str, float]:
        """`ms`, and `work_timed`: the share of the multiply-accumulates of the frames that were timed, where it is told
        without a second run."""

    def facts(self) -> dict[str, Any]:
        """What was timed."""


class Processor:
    """Frame by frame of the task's own size."""

    def __init__(self, run: Run, options: argparse.Namespace, known: Sequence[Thresholds]):
        self.run, self.options = run, options
        self.first = max(map(settling, known), default=FIRST)  # the same frames are timed for all
        self.frames = run.inputs(list(run.task.test)[: self.first + options.frames])

    def dense(self, scale: float = 1.0) -> dict[str, float]:
        frames = [at_scale(frame, scale) for frame in self.frames[self.first - WARM :]]
        model = self.run.task.network
        graph = deltaconvert.convert(model, frames[0]).graph
        found = prepare(
            Network(model, graph, frames[0], torch.get_num_threads()),
            [name for name in self.options.engines.split(",") if name in ENGINES],
        )
        for name, why in found.skipped.items():
            print(f"{name}: {why}", flush=True)
        calls = found.ready.items()
        return {name: median_ms(lambda x, e=engine: e(x)(), frames, WARM) for name, engine in calls}

    def converted(self, thresholds: Thresholds) -> dict[str, float]:
        settled = settling(thresholds)
        frames = self.frames[self.first - settled :]
        delta = deltaconvert.convert(self.run.task.network, frames[0], threshold=thresholds)
        return {"ms": median_ms(delta, frames, settled)}

    def facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.frames[0].shape),
            "type": "float32",
            "frames": len(self.frames) - self.first,
        }


class Card:
    """Batches of the clip at several places, as gpu_accuracy.py times them, in the type that the task takes there."""

    def __init__(self, run: Run, options: argparse.Namespace, known: Sequence[Thresholds]):
        self.run, self.options = run, options
        self.first = max(map(settling, known), default=FIRST)  # the same frames are timed for all
        size = size_of(run.task) if options.enlarged else None
        count = options.frames + self.first
        self.frames = batches(run.task, run.task.test, options.batch, count, size, run.type)

    def dense(self, scale: float = 1.0) -> dict[str, float]:
        frame = at_scale(self.frames[0], scale)
        kept = {mode: self._kept(frame, mode) for mode in self.options.modes if self.options.kept}
        still = frame.contiguous(memory_format=torch.channels_last)
        times, runs = raced(engines(self.run.task.network, frame, self.options.modes, kept), still)
        runs.clear()
        free()
        return times

    def _kept(self, frame: Tensor, mode: str) -> Path:
        shape = "x".join(map(str, frame.shape))
        return self.options.kept / f"{self.run.task.name}-{shape}-{mode}.xz"

    def converted(self, thresholds: Thresholds) -> dict[str, float]:
        delta = deltaconvert.convert(self.run.task.network, self.frames[0], threshold=thresholds)
        times, work = played(delta, self.frames, self.first)
        del delta
        free()
        return {"ms": statistics.median(times), "work_timed": work}

    def facts(self) -> dict[str, Any]:
        told = {"shape": list(self.frames[0].shape), "type": str(self.run.type).removeprefix("torch.")}
        return told | {"frames": len(self.frames) - self.first, "gpu": torch.cuda.get_device_name()}


def median_ms(network: Callable[[Tensor], Any], frames: Sequence[Tensor], first: int) -> float:
    """Of the frames behind the first."""
    return statistics.median([timed(network, frame)[1] for frame in frames][first:])


def at_scale(frame: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return frame
    return F.interpolate(frame, smaller(frame.shape[2:], scale), mode="bilinear", antialias=True)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
