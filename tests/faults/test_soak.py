"""Cameras come, go, reset and misbehave for minutes: every output right, memory flat.

By default it takes seconds; `make soak` and CI run five minutes, DELTACONVERT_SOAK_MINUTES=60 an hour.
"""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import pytest
import torch
from oracle import tolerance
from torch import nn

import deltaconvert
from deltaconvert.errors import DeltaConvertError
from deltaconvert.streams import StreamPool

MINUTES = float(os.environ.get("DELTACONVERT_SOAK_MINUTES", "0.2"))
# Seconds between frames, to leave time to others.
PAUSE = float(os.environ.get("DELTACONVERT_SOAK_PAUSE", "0"))
SHAPE = (1, 3, 45, 61)
MOST = 8  # streams
# Bytes; allocators keep what a peak left behind. A leak of one frame in every step would pass it in three minutes.
SLACK = 48 * 2**20


def held() -> int:
    """Bytes of memory that the process holds, and on a GPU those in use."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident + (torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0)


class Cameras:
    """Streams of a pool, each with its scene. What happens to them is drawn."""

    def __init__(self, pool: StreamPool, network: nn.Module):
        self.pool, self.network, self.draw = pool, network, random.Random(0)
        self.scenes: dict[int, torch.Tensor] = {}
        self.spoilt: set[int] = set()  # a NaN may come out as a number: oneDNN's fused relu does that
        self.joined = 0

    def some(self) -> int:
        return self.draw.choice(list(self.scenes))

    def happen(self) -> None:
        """A camera joins, leaves, starts over, moves or sends a frame that does not fit; mostly nothing happens."""
        event = self.draw.random()
        if (event < 0.05 and len(self.scenes) < MOST) or not self.scenes:
            self.joined += 1
            self.scenes[self.joined] = torch.rand(SHAPE)
            self.pool.join(self.joined)
        elif event < 0.08:
            gone = self.some()
            del self.scenes[gone]
            self.pool.drop(gone)
        elif event < 0.10:
            self.pool.reset(self.some())
        elif event < 0.12:
            moved = self.some()
            taken = self.pool.snapshot(moved)
            self.pool.drop(moved)
            self.pool.join(moved, taken)
        elif event < 0.14:
            with pytest.raises(DeltaConvertError):
                self.pool.put(self.some(), torch.rand(1, 3, 5, 5))

    def send(self) -> None:
        self.spoilt = set()
        for stream, scene in self.scenes.items():
            if self.draw.random() < 0.7:
                y, x = self.draw.randrange(SHAPE[2] - 9), self.draw.randrange(SHAPE[3] - 9)
                scene[..., y : y + 9, x : x + 9] = torch.rand(3, 9, 9)
                frame = scene.clone()
                if self.draw.random() < 0.01:
                    frame[..., y, x] = float("nan")  # for one frame
                    self.spoilt.add(stream)
                self.pool.put(stream, frame)

    def step(self) -> None:
        """Plays a step, and compares one in ten outputs with the dense network's."""
        for stream, result in self.pool.step().items():
            if result.error is not None:
                raise result.error
            if self.draw.random() < 0.1 and stream not in self.spoilt:
                with torch.no_grad():
                    expected = self.network(self.scenes[stream])
                difference = float((result.output - expected).abs().max())
                assert difference <= tolerance(torch.float32, expected), f"stream {stream}"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.timeout(60 * MINUTES + 120)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.skipif(MINUTES == 0, reason="DELTACONVERT_SOAK_MINUTES=0: it runs elsewhere")
def test_soak(device, request):
    if device == "cuda":
        request.getfixturevalue("gpu")
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
    network = nn.Sequential(*convolutions, nn.GroupNorm(2, 8)).eval().to(device)
    pool = StreamPool(deltaconvert.convert(network, torch.rand(SHAPE), backend=device), MOST, limit=MOST)
    cameras, steps = Cameras(pool, network), 0
    settled, start = None, time.monotonic()
    while time.monotonic() - start < 60 * MINUTES:
        cameras.happen()
        cameras.send()
        cameras.step()
        steps += 1
        time.sleep(PAUSE)
        if settled is None and time.monotonic() - start > 12 * MINUTES:
            gc.collect()
            settled = held()
    gc.collect()
    assert settled is not None and steps > 20
    growth = held() - settled
    print(
        f"{steps} steps, {cameras.joined} streams, {MINUTES:g} minutes, memory grew by {growth / 2**20:.1f} MB"
    )
    assert growth < SLACK
