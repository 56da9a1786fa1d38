"""streams/: cameras share a network and do not notice each other."""

from __future__ import annotations

import functools
import random
import sys
import threading
import time

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from oracle import Call, assert_close, assert_same_bits, examples, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError, StreamError
from deltaconvert.streams import StreamPool, batch

SHAPE = (1, 3, 9, 11)


class Fussy(nn.Module):
    """An island that raises on bright frames."""

    def forward(self, x):
        if x.max().item() > 100:
            raise ValueError("too bright")
        return x


def network(**parts):
    torch.manual_seed(0)
    return Call(
        lambda m, x: (m.norm(m.conv(x)).relu(), m.head(m.pool(x).flatten(1))),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.GroupNorm(2, 4),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Linear(3, 5),
        **parts,
    ).eval()


def converted(backend, model=None, **options):
    return deltaconvert.convert(model or network(), video()[0], backend=backend, **options)


def video(seed=0):
    return scripted_video(SHAPE, torch.float32, seed)


def only(results, stream):
    assert list(results) == [stream] and results[stream].error is None
    return results[stream].output


def test_as_dense(backend):
    model = network()
    pool = StreamPool(converted(backend, model))
    pool.join("a")
    for number, frame in enumerate(video(), start=1):
        assert pool.put("a", frame) == number
        results = pool.step()
        assert results["a"].number == number
        assert_close(only(results, "a"), model(frame))
    assert pool.stats()["a"].frames == len(video())


def test_made_under_inference_mode(backend):
    """It may be used outside of it, and the other way round."""
    model, frames = network(), video()
    with torch.inference_mode():
        pool = StreamPool(converted(backend, model))
        pool.join("a")
    for frame, mode in zip(frames, (False, True, False), strict=False):
        with torch.inference_mode(mode):
            pool.put("a", frame)
            assert_close(only(pool.step(), "a"), model(frame))


def test_nothing_waits(backend):
    pool = StreamPool(converted(backend), streams=2)
    pool.join("a")
    assert not pool.step() and pool.latest("a") is None
    frame = video()[0]
    pool.put("a", frame)
    first = only(pool.step(), "a")
    pool.join("b")
    pool.put("b", video(1)[0])
    only(pool.step(), "b")
    assert pool.stats()["a"].density == 0  # b's step left it alone
    assert_same_bits(pool.latest("a"), first, "the last output")


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_streams_that_sleep_are_not_looked_at(backend, threshold):
    """What lies in their place of the batch changes nothing; when they wake they go on from what they saw last."""
    model, alone = (converted(backend, threshold=threshold).for_streams(3) for _ in range(2))
    frames = [torch.cat([video(seed)[t] for seed in range(3)]) for t in range(6)]
    shown = frames[0].clone()
    model(shown), alone(shown)
    for t, awake in enumerate([{0}, {0, 2}, {1}, {0, 1, 2}, {2}], start=1):
        model.sleep({0, 1, 2} - awake)
        for stream in range(3):
            if stream in awake:
                shown[stream] = frames[t][stream]
        noisy = shown.clone()
        if backend != "reference":
            noisy[[stream for stream in range(3) if stream not in awake]] += 5
        for found, expected in zip(model(noisy), alone(shown), strict=True):
            assert_same_bits(found, expected, f"frame {t}")
        assert torch.equal(model.input_masks(), alone.input_masks())
    with pytest.raises(InputError, match="no stream 3"):
        model.sleep([3])
    with pytest.raises(InputError, match=r"give a list of them, \[0\]"):
        model.sleep(0)


def test_the_newest_frame_wins(backend):
    pool = StreamPool(converted(backend))
    pool.join("a")
    old, new = video()[0], video(1)[0]
    assert (pool.put("a", old), pool.put("a", new)) == (1, 2)
    results = pool.step()
    assert results["a"].number == 2
    assert_close(only(results, "a"), network()(new))
    assert pool.stats()["a"].dropped == 1


def test_latency_counts_from_the_frame_that_was_computed(backend, monkeypatch):
    """Not from a newer one that came while the network ran."""
    pool = StreamPool(converted(backend))
    pool.join("a")
    run = pool._batch.model.frame_for

    def slow(frames, taken):
        time.sleep(0.05)
        pool.put("a", frames[0][:1])
        return run(frames, taken)

    monkeypatch.setattr(pool._batch.model, "frame_for", slow)
    pool.put("a", video()[0])
    assert pool.step()["a"].latency >= 0.05 and pool.waiting


def test_it_grows_and_keeps_the_state(backend):
    pool = StreamPool(converted(backend))
    frames = video()
    for place in range(5):
        pool.join(place)
        pool.put(place, frames[0] + place)
        pool.step()
    assert pool.capacity == 8
    for place in range(5):
        pool.put(place, frames[0] + place)
    results = pool.step()
    assert all(stats.density == 0 for stats in pool.stats().values())
    for place in range(5):
        assert_close(results[place].output, network()(frames[0] + place))


def test_it_has_no_more_slots_than_the_limit(backend):
    """Where memory holds three streams, a place for a fourth would be one too many."""
    pool = StreamPool(converted(backend), streams=2, limit=3)
    assert pool.capacity == 2
    for place in range(3):
        pool.join(place)
        pool.put(place, video(place)[0])
    assert pool.capacity == 3
    for place, result in pool.step().items():
        assert_close(result.output, network()(video(place)[0]))
    assert StreamPool(converted(backend), streams=3, limit=3).capacity == 3


def test_steps_go_on_while_it_grows(backend, monkeypatch):
    model = network()  # made once: another thread draws random numbers too
    pool = StreamPool(converted(backend, model))
    pool.join("a")
    plan, planning, seen = deltaconvert.DeltaModel.for_streams, threading.Event(), threading.Event()

    def slow(delta, streams):
        planning.set()
        assert seen.wait(60)
        return plan(delta, streams)

    monkeypatch.setattr(deltaconvert.DeltaModel, "for_streams", slow)
    other = threading.Thread(target=pool.join, args=("b",))
    other.start()
    assert planning.wait(60)
    frames = video()
    for frame in frames[:3]:
        pool.put("a", frame)
        assert_close(only(pool.step(), "a"), model(frame))
    assert "b" not in pool
    seen.set()
    while other.is_alive():
        pool.put("a", frames[2])
        assert_close(only(pool.step(), "a"), model(frames[2]))
    pool.put("a", frames[2]), pool.put("b", frames[3])
    results = pool.step()
    assert pool.stats()["a"].density == 0, "it went on from what it saw"
    assert_close(results["b"].output, model(frames[3]))


def test_a_stream_moves_to_another_pool(backend):
    here, there = StreamPool(converted(backend), streams=2), StreamPool(converted(backend), streams=2)
    alone = StreamPool(converted(backend), streams=2)
    here.join("a"), alone.join("a"), there.join("b")
    frames = video()
    for frame in frames[:4]:
        here.put("a", frame), here.step(), alone.put("a", frame), alone.step()
    there.join("a", here.snapshot("a"))
    there.put("b", frames[7])
    there.step()  # before the stream's first frame here
    for frame in frames[4:]:
        there.put("a", frame), alone.put("a", frame)
        assert_same_bits(only(there.step(), "a"), only(alone.step(), "a"), "moved")
        assert there.stats()["a"].density == alone.stats()["a"].density
    with pytest.raises(InputError, match="no snapshot"):
        there.drop("b"), there.join("c", b"x")
    assert "c" not in there


def fussy_pool(backend):
    """A network whose island refuses large values, and a pool of it with the streams a and b."""
    fussy = Call(
        lambda m, x: m.fussy(m.conv(x)) * 2, conv=nn.Conv2d(3, 4, 3, padding=1), fussy=Fussy()
    ).eval()
    pool = StreamPool(deltaconvert.convert(fussy, video()[0], backend=backend), streams=2)
    pool.join("a"), pool.join("b")
    return fussy, pool


def test_an_error_stays_with_its_stream(backend):
    fussy, pool = fussy_pool(backend)
    frames, others = video(), video(1)
    for t, (frame, other) in enumerate(zip(frames, others, strict=True)):
        bad = t in (0, 3, 4)
        pool.put("a", frame * 1e5 if bad else frame), pool.put("b", other)
        results = pool.step()
        assert (results["a"].error is not None) == bad and results["b"].error is None
        assert_close(results["b"].output, fussy(other), f"frame {t}")
        if not bad:
            assert_close(results["a"].output, fussy(frame), f"frame {t}")
    assert pool.stats()["a"].failed == 3 and pool.stats()["b"].failed == 0


def test_a_frame_that_raised_is_gone(backend):
    """It does not meet the network again with another stream's frame."""
    fussy, pool = fussy_pool(backend)
    for number, bad in enumerate((True, False, True)):
        pool.put("a", video()[number] * (1e5 if bad else 1))
        assert (pool.step()["a"].error is not None) == bad
        pool.put("b", video(1)[number])
        assert_close(only(pool.step(), "b"), fussy(video(1)[number]))


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

        sys.setprofile(counted)
        try:
            for stream in range(streams):
                pool.put(stream, frame)
            pool.step()
        finally:
            sys.setprofile(None)
        return count

    few, many = calls(8), calls(56)
    assert (many - few) / 48 < 40, "calls, those of C included"


def test_refusals_leave_the_pool_as_it_was(backend):
    pool = StreamPool(converted(backend), limit=2)
    pool.join("a")
    frame = video()[0]
    pool.put("a", frame)
    first = only(pool.step(), "a")
    for call, reason in (
        (lambda: pool.join("a"), "in the pool already"),
        (lambda: pool.drop("z"), "no stream 'z'"),
        (lambda: pool.put("z", frame), "no stream 'z'"),
        (lambda: pool.put("a", frame[..., :5]), "the network takes"),
        (lambda: pool.put("a", frame.double()), "the network takes"),
        (
            lambda: pool.put("a", frame, frame),
            r"called with \(\*, \*\); the network was converted for \(\*\)",
        ),
        (lambda: (pool.join("b"), pool.join("c")), "limit is 2"),
    ):
        with pytest.raises((StreamError, InputError), match=reason):
            call()
    pool.put("a", frame)
    assert_same_bits(only(pool.step(), "a"), first, "after refusals")


def test_no_memory_for_another_stream(backend, monkeypatch):
    pool = StreamPool(converted(backend))
    pool.join("a")
    monkeypatch.setattr(deltaconvert.DeltaModel, "for_streams", lambda *_: torch.empty(10**15))
    with pytest.raises(StreamError, match="no room for stream 'b'"):
        pool.join("b")
    frame = video()[0]
    pool.put("a", frame)
    assert_close(only(pool.step(), "a"), network()(frame))


def test_outputs_that_are_no_rows_are_refused(backend):
    total = Call(lambda m, x: m.conv(x).sum(0), conv=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(InputError, match="not one row a stream"):
        StreamPool(converted(backend, total), streams=2)


def test_a_network_for_one_batch_only_is_refused():
    fixed = Call(lambda m, x: m.conv(x).reshape(1, 4, 9, 11), conv=nn.Conv2d(3, 4, 3, padding=1)).eval()
    model = converted("reference", fixed)
    with pytest.raises(InputError, match="cannot run on a batch of 2"):
        StreamPool(model, streams=2)
    assert StreamPool(model).capacity == 1


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
