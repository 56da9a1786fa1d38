"""Failures of one camera, one process or one file, and what docs/serve.md promises for them."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import pytest
import torch
from oracle import Call, assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import StreamError
from deltaconvert.streams import StreamPool

SHAPE = (1, 3, 17, 23)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2)).eval()


def video(seed=0):
    return scripted_video(SHAPE, torch.float32, seed)


def pool(backend, streams=("a", "b"), model=None, **options):
    made = StreamPool(
        deltaconvert.convert(model or network(), video()[0], backend=backend, **options), len(streams)
    )
    for stream in streams:
        made.join(stream)
    return made


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_frames(backend, threshold, value):
    """A frame with NaN gives what dense gives; the next good frame is right, and other streams are unaffected."""
    cameras, dense = pool(backend, threshold=threshold), network()
    alone = pool(backend, threshold=threshold)
    for t, (frame, other) in enumerate(zip(video(), video(1), strict=True)):
        if t in (2, 3):
            frame = frame.clone()
            frame[..., 3:6, 4:9] = value
        cameras.put("a", frame), cameras.put("b", other), alone.put("b", other)
        results = cameras.step()
        assert_same_bits(results["b"].output, alone.step()["b"].output, f"frame {t}")
        if threshold == 0 and t not in (2, 3):
            assert_close(results["a"].output, dense(frame), f"frame {t}")
        assert results["a"].output.isfinite().all() or t in (2, 3)


def test_clock_jumps(backend, monkeypatch):
    """Nothing depends on the wall clock."""
    cameras, now = pool(backend, "a"), [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for jump, frame in zip((0, 3600, -1e9, 5e9), video(), strict=False):
        now[0] += jump
        cameras.put("a", frame)
        result = cameras.step()["a"]
        assert_close(result.output, network()(frame))
        assert 0 <= result.latency < 60


def test_a_stalled_producer(backend):
    """A camera that sends nothing costs nothing, and keeps its last output."""
    cameras = pool(backend)
    cameras.put("a", video()[0])
    last = cameras.step()["a"].output.clone()
    for frame in video(1):
        cameras.put("b", frame)
        assert list(cameras.step()) == ["b"]
        assert cameras.stats()["a"].density == 0
        assert_same_bits(cameras.latest("a"), last, "the last output")


def test_a_stalled_consumer(backend):
    """Frames that wait replace each other: memory stays flat, and the newest is computed."""
    cameras, frames = pool(backend, "a"), video()
    for _ in range(100):
        for frame in frames:
            cameras.put("a", frame)
    result = cameras.step()["a"]
    assert_close(result.output, network()(frames[-1]))
    stats = cameras.stats()["a"]
    assert (stats.frames, stats.dropped) == (1, 100 * len(frames) - 1)


ARMED: list[BaseException] = []  # what the island raises next


class Interrupting(nn.Module):
    """An island: what it does depends on values."""

    def forward(self, x):
        if x.sum().item() != 0 and ARMED:
            raise ARMED.pop()
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_interrupted_in_mid_frame(backend, error):
    """After Ctrl-C, no memory or an error half-way, the pool continues as if the frame had not come."""
    model = Call(
        lambda m, x: m.last(m.stop(m.conv(x))),
        conv=nn.Conv2d(3, 4, 3),
        last=nn.Conv2d(4, 2, 3),
        stop=Interrupting(),
    )
    cameras, frames = pool(backend, model=model.eval()), video()
    for t, frame in enumerate(frames):
        cameras.put("a", frame), cameras.put("b", frame + 1)
        if t == 4:
            ARMED.append(error())
            if error is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    cameras.step()
                cameras.put("a", frame), cameras.put("b", frame + 1)
        results = cameras.step()
        assert not ARMED
        for stream, result in results.items():
            assert result.error is None
            assert_close(result.output, model(frame if stream == "a" else frame + 1), f"frame {t}")
        assert sorted(results) == ["a", "b"]


def test_no_memory_on_join(backend, monkeypatch):
    """A stream is refused if there is no memory for it; the others continue, and it may ask again."""
    cameras = pool(backend)
    cameras.put("a", video()[0]), cameras.step()
    plan = deltaconvert.DeltaModel.for_streams

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(deltaconvert.DeltaModel, "for_streams", full)
    with pytest.raises(StreamError, match="no room for stream 'c': out of memory"):
        cameras.join("c")
    cameras.put("a", video()[0])
    cameras.step()
    assert cameras.stats()["a"].density == 0 and cameras.streams == ["a", "b"]
    monkeypatch.setattr(deltaconvert.DeltaModel, "for_streams", plan)
    cameras.join("c")


@pytest.mark.gpu
def test_no_gpu_memory_on_join(gpu):
    """The same on a full card: planning for more streams finds no memory."""
    dense, scenes = network().to(gpu), [torch.rand(1, 3, 512, 512) for _ in range(2)]
    cameras = StreamPool(deltaconvert.convert(dense, scenes[0], backend="cuda"), 2)
    dense = copy.deepcopy(dense).cpu()  # so that it takes no memory there
    cameras.join("a"), cameras.join("b")

    def play():
        for stream, scene in zip("ab", scenes, strict=True):
            scene[..., 100:200, 100:200] = torch.rand(100, 100)
            cameras.put(stream, scene.clone())
        results = cameras.step()
        for stream, scene in zip("ab", scenes, strict=True):
            assert results[stream].error is None
            assert_close(results[stream].output.cpu(), dense(scene.cpu()))
            assert 0 < cameras.stats()[stream].density <= 1

    play()
    torch.cuda.synchronize()
    gc.collect()  # networks of earlier tests would make room during the join
    torch.cuda.empty_cache()
    card = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / card)
    ballast = _fill(gpu)  # what earlier tests left free in torch's blocks
    room = torch.cuda.memory_reserved() + 24 * 2**20  # for frames and outputs, not for two more streams' maps
    torch.cuda.set_per_process_memory_fraction(room / card)
    try:
        for _ in range(3):
            with pytest.raises(StreamError, match="no room for stream 'c'"):
                cameras.join("c")
            play()
            assert cameras.stats()["a"].density < 0.1 and cameras.streams == ["a", "b"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del ballast
    cameras.join("c")
    play()
    assert cameras.stats()["a"].density < 0.1  # it kept what it knew


def _fill(gpu):
    """Tensors in all memory that torch may still give, down to 1 MiB."""
    held = []
    for size in (2**28, 2**26, 2**24, 2**22, 2**20):
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device=gpu))
    return held


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_while_writing_a_file(tmp_path):
    """A file only gets its name when it is complete: a kill leaves the old file."""
    path = tmp_path / "network.delta"
    model = deltaconvert.convert(network(), video()[0], backend="reference")
    model.save(path)
    before = path.read_bytes()
    script = f"""
        import os, sys, torch, deltaconvert
        model = deltaconvert.load({str(path)!r}, backend="reference")
        model.info = {{"text": "x" * 10_000_000}}
        print("ready", flush=True)
        while True:
            model.save({str(path)!r})
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env=env
    )
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    deltaconvert.load(path, backend="reference")  # whole: the old one or a new one
    assert len(path.read_bytes()) >= len(before)


def test_two_models_in_two_threads(backend):
    """Models do not share state: each gives bit for bit what it gives alone."""
    frames = [video(seed) for seed in range(2)]
    models = [deltaconvert.convert(network(), frames[0][0], backend=backend) for _ in range(2)]
    alone = []
    for model, own in zip(models, frames, strict=True):
        twin = copy.deepcopy(model)
        alone.append([twin(frame).clone() for frame in own])
    found: list[list[torch.Tensor]] = [[], []]

    def play(place):
        for frame in frames[place]:
            found[place].append(models[place](frame).clone())

    threads = [threading.Thread(target=play, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(2):
        for t, (a, b) in enumerate(zip(found[place], alone[place], strict=True)):
            assert_same_bits(a, b, f"model {place}, frame {t}")


def _forked(model, frame, answers):
    torch.set_num_threads(1)  # the threads of the parent are not in the child
    try:
        answers.put(float(model(frame).sum()))
    except Exception as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_a_model_runs_or_says_that_it_cannot(backend):
    """After a fork a CPU model runs in the child; a CUDA model says that it cannot, and does not hang."""
    threads, frame = torch.get_num_threads(), video()[0]
    torch.set_num_threads(1)
    try:
        model = deltaconvert.convert(network(), frame, backend=backend)
        expected = float(model(frame).sum())
    finally:
        torch.set_num_threads(threads)  # other tests' as well
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(
        target=_forked, args=(model, frame.cpu() if backend != "cuda" else frame, answers)
    )
    child.start()
    answer = answers.get(timeout=60)
    child.join(60)
    if backend == "cuda":
        assert isinstance(answer, str) and "CUDA" in answer
    else:
        assert answer == pytest.approx(expected)
