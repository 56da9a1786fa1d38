"""A stream that fails, or that a pool refuses, and what becomes of the others."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from oracle import Call, assert_close, assert_same_bits
from pooled import converted, network, only, video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError, StreamError
from deltaconvert.streams import StreamPool
from deltaconvert.streams.batch import Batch


class Fussy(nn.Module):
    """An island that raises on bright frames."""

    def forward(self, x):
        if x.max().item() > 100:
            raise ValueError("too bright")
        return x


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


def test_what_a_refused_stream_had_taken_is_free(backend, monkeypatch):
    """While somebody holds the error, and before Python's collector runs by itself."""
    pool, made = StreamPool(converted(backend)), []
    pool.join("a")

    def run_out(batch, blank):
        made.append(weakref.ref(batch.model))
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Batch, "_checked", run_out)
    gc.disable()
    try:
        with pytest.raises(StreamError, match="no room for stream 'b'") as held:
            pool.join("b")
        assert len(made) == 1 and made[0]() is None, held
    finally:
        gc.enable()


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
