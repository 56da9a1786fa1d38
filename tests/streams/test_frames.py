"""Frames of pools: where they lie, how long they are kept, which threads and streams bring them."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch
from oracle import Call, assert_close
from pooled import converted, network, only, video
from torch import nn

import deltaconvert
from deltaconvert.streams import StreamPool, batch


def test_outputs_do_not_keep_each_other_in_memory(backend):
    """A stream that sleeps keeps its last output, not the batch that it was part of."""
    size = (1, 3, 160, 220)
    model = Call(lambda m, x: (m.conv(x), m.conv(x).mean((2, 3))), conv=nn.Conv2d(3, 8, 3)).eval()
    pool = StreamPool(deltaconvert.convert(model, torch.rand(size), backend=backend), streams=2)
    pool.join("a"), pool.join("b")
    frames = {"a": torch.rand(size), "b": torch.rand(size)}
    for stream, frame in frames.items():
        pool.put(stream, frame)
    for stream, result in pool.step().items():
        assert_close(result.output, model(frames[stream]))
        large, _ = result.output
        assert large.untyped_storage().nbytes() == large.nbytes > 2**20


def test_outputs_that_are_the_same_memory_in_every_frame(monkeypatch):
    """As a CUDA graph's are: views of their rows are made once, and what was handed out stays as it was."""
    monkeypatch.setattr(batch, "SHARED_BYTES", 0)
    pool = StreamPool(converted("reference"), streams=4)
    held = [torch.zeros(4, 4, 8, 8), torch.zeros(4, 5)]

    def frame_for(frames, taken):
        for output in held:
            output += torch.arange(1.0, 5.0).view(-1, *[1] * (output.dim() - 1))
        return taken(held)

    monkeypatch.setattr(pool._batch.model, "frame_for", frame_for)
    found = []
    for stream in "abc":
        pool.join(stream)
    for _ in range(4):
        pool.put("c", video()[0]), pool.put("a", video()[0])
        found.append(pool.step())
    for step, results in enumerate(found, start=1):
        assert list(results) == ["c", "a"]
        for stream, row in (("a", 1), ("c", 3)):
            assert all((output == step * row).all() and len(output) == 1 for output in results[stream].output)


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [False, True])
def test_frames_from_host_memory(gpu, pinned):
    """They are brought over beside what runs, in the order of their arrival, and the newest wins."""
    with torch.device("cpu"):
        frames = [torch.rand(1, 3, 270, 480) for _ in range(24)]
    model = network().to(gpu)
    pool = StreamPool(deltaconvert.convert(model, frames[0].to(gpu), backend="cuda"), streams=4)
    given = [frame.pin_memory() if pinned else frame for frame in frames]
    for stream in range(4):
        pool.join(stream)
    for start in range(0, 24, 8):
        for number in range(8):
            pool.put(number % 4, given[start + number])
        for stream, result in pool.step().items():
            assert_close(result.output, model(frames[start + 4 + stream].to(gpu)))
    assert all(stats.dropped == 3 for stats in pool.stats().values())


@pytest.mark.gpu
def test_frames_made_on_another_stream(gpu):
    """The step reads a frame when the work that makes it has ended."""
    model = network().to(gpu)
    pool = StreamPool(deltaconvert.convert(model, torch.rand(1, 3, 270, 480), backend="cuda"))
    pool.join("a")
    large, side = torch.rand(4000, 4000), torch.cuda.Stream()
    for _ in range(4):
        with torch.cuda.stream(side):
            for _ in range(8):  # milliseconds
                product = large @ large
            frame = product[: 3 * 270, :480].reshape(1, 3, 270, 480) * 1e-3
            pool.put("a", frame)
        output = only(pool.step(), "a")
        side.synchronize()
        assert_close(output, model(frame))


@pytest.mark.gpu
def test_steps_on_changing_streams(gpu):
    """Who made his frame where the last step ran has nothing noted; the step waits for it elsewhere, too."""
    model = network().to(gpu)
    pool = StreamPool(deltaconvert.convert(model, torch.rand(1, 3, 270, 480), backend="cuda"))
    pool.join("a")
    large, sides = torch.rand(4000, 4000), [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for turn in range(6):
        here, there = sides[turn % 2], sides[(turn + 1) % 2]
        with torch.cuda.stream(here):
            for _ in range(8):  # milliseconds
                product = large @ large
            frame = product[: 3 * 270, :480].reshape(1, 3, 270, 480) * 1e-3
            pool.put("a", frame)
        with torch.cuda.stream(there):
            output = only(pool.step(), "a")
        torch.cuda.synchronize()
        assert_close(output, model(frame))


@pytest.mark.gpu
def test_frames_are_kept_until_they_are_read(gpu):
    """Their memory is not given to others while the step that reads them waits for its turn on the device."""
    model = network().to(gpu)
    pool = StreamPool(deltaconvert.convert(model, torch.rand(1, 3, 270, 480), backend="cuda"), streams=2)
    pool.join("a"), pool.join("b")
    side = torch.cuda.Stream()
    for _ in range(3):
        wanted = torch.rand(1, 3, 270, 480)
        with torch.cuda.stream(side):
            side.wait_stream(torch.cuda.default_stream())
            frame = wanted.clone()
        host = wanted.cpu().pin_memory()
        torch.cuda.synchronize()
        torch.cuda._sleep(50_000_000)  # the step waits behind it
        pool.put("a", frame), pool.put("b", host)
        results = pool.step()
        del frame
        with torch.cuda.stream(side):
            taken = [torch.zeros(1, 3, 270, 480) for _ in range(4)]
        pool.put("b", torch.zeros(1, 3, 270, 480, device="cpu").pin_memory())  # the stream that brings frames
        torch.cuda.synchronize()
        del taken
        for stream in "ab":
            assert_close(results[stream].output, model(wanted))


def test_what_a_frame_takes_in_python():
    """One thread may serve a thousand cameras: a frame more is a few calls more, a stream that rests is none."""
    pool, frame = StreamPool(converted("reference"), streams=64), video()[0]
    for stream in range(64):
        pool.join(stream)
        pool.put(stream, frame)
    pool.step()

    def calls(streams):
        count = 0

        def counted(frame, event, function):
            nonlocal count
            count += event in ("call", "c_call")

        gc.collect()
        gc.disable()  # the finalizers of what other tests left would be counted, too
        sys.setprofile(counted)
        try:
            for stream in range(streams):
                pool.put(stream, frame)
            pool.step()
        finally:
            sys.setprofile(None)
            gc.enable()
        return count

    few, many = calls(8), calls(56)
    assert (many - few) / 48 < 40, "calls, those of C included"


def test_producers_in_threads(backend):
    pool, model = StreamPool(converted(backend), streams=4), network()
    frames = {place: video(place) for place in range(4)}
    for place in frames:
        pool.join(place)

    def produce(place):
        for frame in frames[place]:
            pool.put(place, frame)

    threads = [threading.Thread(target=produce, args=(place,)) for place in frames]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        pool.step()
    pool.step()
    for place, stats in pool.stats().items():
        assert stats.frames + stats.dropped == len(frames[place])
        assert_close(pool.latest(place), model(frames[place][-1]))
