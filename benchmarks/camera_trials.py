"""Plays cameras in real time: whether a server keeps up with a number of them, and the largest number."""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from deltaconvert.watching import measure

BUDGET_MS = 33.0
WARM = 0.7  # seconds
APART = 17  # frames of its clip from one camera to the next
JOINING = 32  # so many cameras bring their first frames together
HOPELESS = 0.03  # share of late frames at which a trial is aborted


class Server(Protocol):
    def begin(self, cameras: int) -> None: ...

    def put(self, camera: int, frame: Tensor) -> None: ...

    def launch(self) -> Sequence[int]:
        """Start a step and return the cameras whose frames it took."""


class Trial:
    """`count` cameras in real time. late: share of the frames that were not answered within the budget."""

    def __init__(self, server: Server, count: int, images: list[list[Tensor]], options: argparse.Namespace):
        self.count, self._server, self._images = count, server, images
        self._period = 1 / options.fps
        self._budget = BUDGET_MS / 1e3 * 30 / options.fps
        self._cuda = options.device == "cuda"
        self._latencies: list[float] = []
        self._steps: list[float] = []
        warm = max(WARM, 3 * self._period)
        self._expected = count * options.seconds * options.fps
        server.begin(count)
        gc.collect()
        gc.freeze()  # or a collection walks through all that torch.compile left, which takes longer than a frame may
        self._join()
        self._play(warm, options.seconds)

    def _join(self) -> None:
        """Each camera's first frame, a full one, before the clock runs."""
        for first in range(0, self.count, JOINING):
            joining = range(first, min(first + JOINING, self.count))
            for camera in joining:
                self._server.put(camera, frame_of(self._images, camera, 0))
            taken = 0
            while taken < len(joining):
                taken += len(self._server.launch())
        if self._cuda:
            torch.cuda.synchronize()

    def _play(self, warm: float, seconds: float) -> None:
        draw, clock = random.Random(0), time.perf_counter
        start = clock() + 0.01
        first, end = start + warm, start + warm + seconds
        arrivals = [(start + draw.random() * self._period, camera, 1) for camera in range(self.count)]
        heapq.heapify(arrivals)
        waiting: dict[int, float] = {}
        flying: tuple[Any, float, dict[int, float]] | None = None
        while arrivals or waiting or flying:
            while arrivals and arrivals[0][0] <= clock():
                due, camera, number = heapq.heappop(arrivals)
                if due > end:
                    continue
                self._server.put(camera, frame_of(self._images, camera, number))
                if waiting.pop(camera, first) > first:
                    self._latencies.append(math.inf)
                waiting[camera] = due
                heapq.heappush(arrivals, (due + self._period, camera, number + 1))
            if flying is not None and (flying[0] is None or flying[0].query()):
                now = clock()
                self._latencies += [now - due for due in flying[2].values() if due > first]
                self._steps.append(now - flying[1])
                flying = None
                if sum(x > self._budget for x in self._latencies) > HOPELESS * self._expected:
                    return
            if flying is None and waiting:
                begun = clock()
                taken = self._server.launch()
                event = torch.cuda.Event() if self._cuda else None
                if event is not None:
                    event.record()
                flying = event, begun, {camera: waiting.pop(camera) for camera in taken}

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return measure.quantile(sorted(self._latencies), 0.99) * 1e3

    @property
    def fits(self) -> bool:
        complete = len(self._latencies) > 0.9 * self._expected
        return complete and self.p99 <= self._budget * 1e3

    def facts(self) -> dict[str, float]:
        return {
            "p50_ms": measure.quantile(sorted(self._latencies), 0.5) * 1e3,
            "p99_ms": self.p99,
            "late": sum(x > self._budget for x in self._latencies) / max(1, len(self._latencies)),
            "step_ms": statistics.median(self._steps[len(self._steps) // 3 :]) * 1e3,
            "complete": len(self._latencies) / self._expected,
        }


def most(trial: Callable[[int], Any], guess: int, limit: int, part: float = 0.2) -> dict[str, Any]:
    """The largest number of cameras that fits, to within one or 2.5 %: searched outwards from a guess, then bisected.

    part: the error that the guess may have, as a share of it.
    """
    tried: dict[int, Any] = {}

    def fits(count: int) -> bool:
        now = trial(count)
        tried[count] = now.facts()
        return bool(now.fits)

    low, high, probe = 0, limit + 1, max(1, min(guess, limit))
    stride = max(1, int(probe * part))
    while high - low > max(1, low // 40):
        if fits(probe):
            low = probe
        else:
            high = probe
        if low > 0 and high <= limit:
            probe = (low + high) // 2
        else:
            probe = min(limit, low + stride) if low else max(1, high - stride)
            stride *= 2
    return {"cameras": low, "tried": tried}


def frame_of(images: list[list[Tensor]], camera: int, number: int) -> Tensor:
    clip = images[camera % len(images)]
    return clip[(number + APART * (camera // len(images))) % len(clip)]
