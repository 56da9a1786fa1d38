"""Cameras join, put frames, sleep, reset and leave in any order."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from oracle import assert_same_bits, examples
from pooled import converted, only, video

from deltaconvert.streams import StreamPool


@functools.cache
def shared(backend, threshold):
    return converted(backend, threshold=threshold)


class Cameras(RuleBasedStateMachine):
    """Up to 32 streams join, leave, reset and sleep at random. A second pool has them in other slots and runs one
    stream a step: outputs are bitwise the same, so nothing that the others do reaches a stream."""

    BACKEND, CAPACITY = "cpu", 32

    @initialize(threshold=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 2**16))
    def start(self, threshold, seed):
        self.pool, self.alone = (StreamPool(shared(self.BACKEND, threshold), self.CAPACITY) for _ in range(2))
        self.videos = {}
        self.draw = random.Random(seed)

    @rule(count=st.integers(1, 12))
    def join(self, count):
        new = [stream for stream in self.draw.sample(range(64), count) if stream not in self.videos]
        new = new[: self.CAPACITY - len(self.videos)]
        for stream in new:
            self.pool.join(stream)
            self.videos[stream] = iter(video(stream))
        for stream in reversed(new):
            self.alone.join(stream)

    @precondition(lambda self: self.videos)
    @rule(reset=st.booleans())
    def leave_or_reset(self, reset):
        stream = self.draw.choice(list(self.videos))
        if reset:
            self.pool.reset(stream), self.alone.reset(stream)
        else:
            self.pool.drop(stream), self.alone.drop(stream)
            del self.videos[stream]

    @precondition(lambda self: self.videos)
    @rule()
    def frame(self):
        awake = {
            stream: next(video, None) for stream, video in self.videos.items() if self.draw.random() < 0.6
        }
        awake = {stream: frame for stream, frame in awake.items() if frame is not None}
        for stream, frame in awake.items():
            self.pool.put(stream, frame)
        results = self.pool.step()
        assert set(results) == set(awake)
        for stream, frame in awake.items():
            self.alone.put(stream, frame)
            assert_same_bits(results[stream].output, only(self.alone.step(), stream), f"stream {stream}")


Cameras.TestCase.settings = settings(max_examples=examples(5), stateful_step_count=12)
TestCameras = Cameras.TestCase


class CamerasOnAGpu(Cameras):
    BACKEND = "cuda"


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
class TestCamerasOnAGpu(CamerasOnAGpu.TestCase):
    settings = settings(max_examples=examples(5), stateful_step_count=12, deadline=None)
