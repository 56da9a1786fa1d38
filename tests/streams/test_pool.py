"""streams/: cameras share a network and do not notice each other."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from oracle import assert_close, assert_same_bits
from pooled import converted, network, only, video

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.streams import StreamPool


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


@pytest.mark.parametrize("options", [{}, {"threshold": {"input": 0.1}, "gate": {"smooth": 3}}], ids=str)
def test_a_stream_does_not_sleep_through_its_first_frame(backend, options):
    model = converted(backend, **options).for_streams(2)
    frames = torch.cat([video(0)[0], video(1)[0]])
    model.sleep([0])
    assert_close(model(frames), network()(frames), "the first frame")
    model.reset(1)
    model.sleep([1, 0])
    assert_close(model(frames), network()(frames), "after a reset")
    model.sleep([1])
    model(frames + 1)
    assert model.input_masks()[0].all() and not (backend != "reference" and model.input_masks()[1].any())


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
