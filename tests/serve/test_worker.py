"""A worker's sources: a camera that is lost is found again, a file ends."""

from __future__ import annotations

import threading
import time

import pytest
from serving import PATIENCE, frame, png, until

from deltaconvert import video
from deltaconvert.errors import VideoError
from deltaconvert.serve import sources
from deltaconvert.serve import worker as module
from deltaconvert.serve.limits import Refused, without_password
from deltaconvert.serve.worker import Worker

URL = "rtsp://user:secret@camera/1"


class Playing:
    """A reader that gives three frames and then fails or ends."""

    fps = 500.0

    def __init__(self, fails):
        self.fails = fails

    def __iter__(self):
        yield from (frame(seed) for seed in range(3))
        if self.fails:
            raise VideoError(f"{URL}: frame 3 cannot be decoded")

    def close(self):
        pass


@pytest.fixture
def worker(file, monkeypatch):
    monkeypatch.setattr(sources, "RETRY", 0.01)
    worker = Worker(file, threads=1)
    worker.join("a")
    yield worker
    worker.close()


@pytest.mark.parametrize("fails", [True, False])
def test_a_lost_camera_is_tried_until_it_answers(worker, monkeypatch, fails):
    """It failed or its stream ended, then does not answer twice."""
    tries = []

    def read(source, **_):
        tries.append(source)
        if len(tries) in (2, 3):
            raise VideoError(f"{source}: cannot be opened")
        return Playing(fails)

    monkeypatch.setattr(video, "read", read)
    before = set(threading.enumerate())
    worker.watch("a", URL)
    (reading,) = set(threading.enumerate()) - before
    until(lambda: len(tries) > 6)
    until(lambda: sum(worker.stats()["a"][what] for what in ("frames", "dropped")) > 3)
    assert set(tries) == {URL} and "secret" not in str(worker.stats()["a"]["source"])
    worker.drop("a")
    reading.join(PATIENCE)
    assert not reading.is_alive(), "nobody wants it any more"


def test_a_camera_that_never_answered(worker, monkeypatch):
    """It is waited for, and said to be; its frames come when it answers."""
    answers, tried = [], []

    def read(source, **_):
        tried.append(source)
        if not answers:
            raise VideoError(f"{source}: cannot be opened")
        return Playing(fails=False)

    monkeypatch.setattr(video, "read", read)
    status = worker.watch("a", URL)
    assert status == "no answer yet, tried again: rtsp://camera/1: cannot be opened"
    assert worker.stats()["a"]["source"] == status
    tried.clear()
    until(lambda: len(tried) > 3)
    assert worker.stats()["a"]["source"] == status, "it was never there, so it is not lost"
    answers.append(1)
    until(lambda: worker.stats()["a"]["frames"] > 0)
    until(lambda: worker.stats()["a"]["source"] == "rtsp://camera/1")
    answers.clear()
    until(lambda: str(worker.stats()["a"]["source"]).startswith("lost"))


def test_a_refused_address_leaves_what_is_read(worker, monkeypatch):
    def read(source, **_):
        if source != URL:
            raise VideoError(f"{source}: cannot be opened")
        return Playing(fails=False)

    monkeypatch.setattr(video, "read", read)
    worker.watch("a", URL)
    with pytest.raises(Refused, match="cannot be opened"):
        worker.watch("a", "rtsp://elsewhere")
    before = worker.stats()["a"]["frames"]
    until(lambda: worker.stats()["a"]["frames"] > before + 3)
    assert worker.stats()["a"]["source"] == "rtsp://camera/1"


def test_a_stream_that_was_dropped_before_its_camera_answered(worker, monkeypatch):
    """Nobody reads it on: a stream of that name would get its frames."""
    asked, answers = threading.Event(), threading.Event()

    def read(source, **_):
        asked.set()
        assert answers.wait(PATIENCE)
        return Playing(fails=False)

    monkeypatch.setattr(video, "read", read)
    refusals = []

    def watch():
        try:
            worker.watch("a", URL)
        except Refused as error:
            refusals.append(error.status)

    before = set(threading.enumerate())
    watching = threading.Thread(target=watch)
    watching.start()
    assert asked.wait(PATIENCE)
    worker.drop("a"), worker.join("a")
    answers.set()
    watching.join(PATIENCE)
    assert refusals == [404]
    until(lambda: set(threading.enumerate()) <= before)


def test_a_frame_wakes_those_who_wait_for_it(worker):
    """And no other stream's: of a hundred requests each frame would wake all."""
    worker.join("b")
    worker.frame("b", png(frame(0)), "image/png")
    looked, news = [], worker._cameras["b"].news
    wait_for = news.wait_for
    news.wait_for = lambda true, timeout: wait_for(lambda: looked.append(1) or true(), timeout)
    looking = threading.Thread(target=worker.picture, args=("b", 1))
    looking.start()
    until(lambda: looked)
    for seed in range(20):
        worker.frame("a", png(frame(seed)), "image/png")
    looking.join(PATIENCE)
    assert len(looked) <= 2  # at first, and when it gave up


def test_a_stream_that_comes_again_has_no_old_result(worker, monkeypatch):
    """It was dropped and joined after a step that computed its frame, before anybody had looked at the results."""
    step, done = worker._pool.step, threading.Event()
    again = threading.Thread(target=lambda: (worker.drop("a"), worker.join("a"), done.set()))

    def interrupted():
        results = step()
        again.start()
        done.wait(0.3)
        return results

    monkeypatch.setattr(worker._pool, "step", interrupted)
    worker._put("a", frame(0))
    assert done.wait(PATIENCE) and worker.result("a") == {}


def test_latency_counts_until_the_result_is_there(worker, monkeypatch):
    """A GPU may be at work when the step returns: who reads the output waits for it."""
    describe = module.describe

    def waiting(output):
        time.sleep(0.05)
        return describe(output)

    monkeypatch.setattr(module, "describe", waiting)
    assert worker.frame("a", png(frame(0)), "image/png")["latency"] >= 0.05
    stats = worker.stats()["a"]
    assert stats["latency"] == stats["latency_p99"] >= 0.05


def test_passwords_are_not_shown():
    assert without_password(f"{URL}: no answer") == "rtsp://camera/1: no answer"
    assert without_password("file:///a@b") == "file:///a@b"


def test_a_result_that_cannot_be_shown_stays_with_its_stream(worker, monkeypatch):
    """The thread that runs all streams goes on."""
    describe = module.describe

    def fussy(output):
        if worker.picky:
            raise MemoryError("no room for a picture")
        return describe(output)

    monkeypatch.setattr(module, "describe", fussy)
    worker.picky = True
    with pytest.raises(Refused, match="cannot be shown: no room for a picture"):
        worker.frame("a", png(frame(0)), "image/png")
    worker.picky = False
    assert worker.frame("a", png(frame(1)), "image/png")["frame"] == 2
    assert worker.alive()


def test_images_are_decoded_a_few_at_a_time(worker, monkeypatch):
    """Each may be as large as the limit: memory would not hold as many as there are requests."""
    decode, busy, most, lock = module.images.decode, [0], [0], threading.Lock()

    def slowly(*args):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.02)
        with lock:
            busy[0] -= 1
        return decode(*args)

    monkeypatch.setattr(module.images, "decode", slowly)
    streams = ["a", "b", "c", "d"]
    for stream in streams:
        worker.join(stream)
    threads = [
        threading.Thread(target=worker.frame, args=(stream, png(frame(0)), "image/png"))
        for stream in streams * 6
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 1 < most[0] <= module.DECODED


def test_density_is_of_a_streams_own_last_frame(worker):
    """Whichever stream the last step was for."""
    worker.join("b")
    for stream, seeds in (("a", (0, 1)), ("b", (2, 2))):
        for seed in seeds:
            worker.frame(stream, png(frame(seed)), "image/png")
    assert worker.stats()["a"]["density"] > 0.9 and worker.stats()["b"]["density"] == 0
