"""The servers that benchmarks/streams.py measures: the dense network in batches, or StreamPools."""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import deltaconvert
from benchmarks import engines, gpu_dense
from benchmarks.camera_trials import frame_of
from deltaconvert.streams.arrivals import Arrivals
from deltaconvert.watching import measure


class Batched:
    """The fastest dense engine for `batch` frames at a time."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.GraphModule,
        example: Tensor,
        batch: int,
        options: argparse.Namespace,
    ):
        """graph: the network in its normal form."""
        self._arrivals, self._waiting = Arrivals(torch.device(options.device)), dict[int, Tensor]()
        self._batch = example.to(options.device).repeat(batch, 1, 1, 1)
        self._rows = self._batch.split(1)
        name, self._run, seconds = fastest(model, graph, self._batch, options)
        self.facts = {"batch": batch, "engine": name, "batch_ms": seconds * 1e3}

    def begin(self, cameras: int) -> None:
        self._waiting.clear()

    def put(self, camera: int, frame: Tensor) -> None:
        (self._waiting[camera],) = self._arrivals.bring([frame])  # in the order of the first that waits

    def launch(self) -> Sequence[int]:
        cameras = list(self._waiting)[: len(self._rows)]
        frames = [self._waiting.pop(camera) for camera in cameras]
        self._arrivals.wait()
        torch._foreach_copy_(list(self._rows[: len(frames)]), frames)
        self._arrivals.keep(frames)
        self._run(self._batch)
        return cameras


def fastest(
    model: nn.Module, graph: fx.GraphModule, batch: Tensor, options: argparse.Namespace
) -> tuple[str, Callable[[Tensor], Any], float]:
    """(name, run, seconds) of the fastest engine for a batch, which `run` reads when it is called."""
    if options.device == "cuda":
        graph = copy.deepcopy(graph).to(memory_format=torch.channels_last)
        runs = {"graph": lambda frames: graph(frames)[0]}
        torch.compiler.reset()
        runs["compile"] = torch.compile(runs["graph"], dynamic=False)
        with torch.no_grad():
            captured = {name: gpu_dense.captured(run, batch) for name, run in runs.items()}
        times = {name: gpu_dense.median_ms(run, batch) / 1e3 for name, run in captured.items()}
        best = min(times, key=lambda name: times[name])
        return best, captured[best], times[best]
    found = engines.prepare(
        engines.Network(model, graph, batch, torch.get_num_threads()), options.engines.split(",")
    )
    ready, seconds = found.ready, {}
    if not ready:
        raise SystemExit(f"no dense engine: {found.skipped}")
    for name, engine in ready.items():
        call = engine(batch)
        seconds[name] = min(measure.timed(call)[1] for _ in range(4)) / 1e3
    best = min(seconds, key=lambda name: seconds[name])
    return best, lambda frames: ready[best](frames)(), seconds[best]


class Pooled:
    """StreamPools that take turns, each with its share of the cameras; cameras that do not play keep their slots."""

    def __init__(self, delta: deltaconvert.DeltaModel, capacity: int, pools: int = 1):
        each = -(-capacity // pools)
        self.pools = [deltaconvert.StreamPool(delta, each, limit=each) for _ in range(pools)]
        self._turn = 0
        self._last: dict[int, Tensor] = {}

    def begin(self, cameras: int) -> None:
        """Cameras of the last trial keep their slots; their first frame is entirely new all the same. An aborted trial
        may have left frames behind."""
        self._last.clear()
        for pool in self.pools:
            pool.step()
        for camera in [camera for pool in self.pools for camera in pool.streams if camera >= cameras]:
            self._of(camera).drop(camera)
        for camera in range(cameras):
            if camera not in self._of(camera):
                self._of(camera).join(camera)

    def put(self, camera: int, frame: Tensor) -> None:
        self._of(camera).put(camera, frame)
        self._last[camera] = frame

    def launch(self) -> Sequence[int]:
        for turn in range(1, len(self.pools) + 1):
            pool = self.pools[(self._turn + turn) % len(self.pools)]
            if pool.waiting:
                break
        self._turn = self.pools.index(pool)
        results = pool.step()
        for result in results.values():
            if result.error is not None:
                raise result.error
        return list(results)

    def steps(self, images: list[list[Tensor]]) -> dict[int, float]:
        """Milliseconds of a step, by its number of frames, in a pool that does nothing else: the median of five steps,
        each with the next frames."""
        pool, number, found = self.pools[0], 0, {}
        cameras = [camera for camera in self._last if self._of(camera) is pool]
        for count in [*(1 << power for power in range(0, 12, 2)), len(cameras)]:
            if count > len(cameras):
                continue
            times = []
            for _ in range(7):
                number += 1
                for camera in cameras[:count]:
                    pool.put(camera, frame_of(images, camera, number))
                _wait()
                begun = time.perf_counter()
                pool.step()
                _wait()
                times.append(time.perf_counter() - begun)
            found[count] = statistics.median(times[2:]) * 1e3
        return found

    def facts(
        self,
        delta: deltaconvert.DeltaModel,
        images: list[list[Tensor]],
        cameras: int,
        features: Callable[[Any], Any] | None,
    ) -> dict[str, Any]:
        """Error, memory and work.

        The error is that of the outputs, or of what `features` makes of them, against the dense network, for the last
        frame of some cameras. Shares of changed pixels and of a dense frame's work are those of all frames but each
        camera's first."""
        seen = features or nn.Identity()
        self.begin(cameras)
        difference, density, before = measure.Difference(), [], (0, 0)
        for step in range(min(40, len(images[0]))):
            for camera in range(cameras):
                self.put(camera, frame_of(images, camera, step))
            for pool in self.pools:
                pool.step()
            if step == 0:
                before = self._work()
            else:
                stats = [stats for pool in self.pools for stats in pool.stats().values()]
                density.append(statistics.mean(each.density for each in stats))
        done, whole = (after - first for after, first in zip(self._work(), before, strict=True))
        with torch.no_grad():
            for camera in range(min(cameras, 8)):
                dense = delta.graph(self._last[camera].to(delta.device))
                difference.add(seen(self._of(camera).latest(camera)), [seen(output) for output in dense])
        return {
            "density": statistics.mean(density),
            "work": done / whole * sum(pool.capacity for pool in self.pools) / cameras,
            "relative_l2": math.sqrt(difference.square / difference.reference),
            "state_mb": sum(pool._batch.model.state_bytes for pool in self.pools) / 2**20,
            "gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        }

    def _of(self, camera: int) -> deltaconvert.StreamPool:
        return self.pools[camera % len(self.pools)]

    def _work(self) -> tuple[int, int]:
        """Multiply-accumulates of all steps so far, and what the dense network would take for them."""
        layers = [layer for pool in self.pools for layer in pool._batch.model.stats().layers]
        done = sum(layer.total_macs_done for layer in layers)
        return done, done + sum(layer.total_macs_skipped for layer in layers)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
