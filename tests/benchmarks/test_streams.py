"""benchmarks/streams.py: how many cameras a server is found to serve."""

import argparse
import json
import sys

import pytest
import torch
from torch import nn

import deltaconvert
from benchmarks import camera_trials, cameras, engines, streams
from benchmarks.camera_servers import Pooled
from deltaconvert import video


class Fits:
    def __init__(self, fits):
        self.fits = fits

    def facts(self):
        return {"fits": self.fits}


@pytest.mark.parametrize("most", [0, 1, 6, 9, 100])
@pytest.mark.parametrize("guess", [0, 6, 50, 400])
def test_the_most_cameras(most, guess):
    """From a guess outwards, then bisected, to one or 2.5 %."""
    found = camera_trials.most(lambda count: Fits(count <= most), guess, 128)
    assert most - max(1, most // 40) < found["cameras"] <= most and len(found["tried"]) <= 14
    assert all(facts["fits"] == (count <= most) for count, facts in found["tried"].items())
    assert camera_trials.most(lambda count: Fits(True), guess, 9)["cameras"] == 9


class Slow:
    """A server that takes four cameras at a time, and its clock: 50 ms a step, 10 us a look."""

    now = 0.0

    def perf_counter(self):
        self.now += 1e-5
        return self.now

    def begin(self, cameras):
        self.frames = {}

    def put(self, camera, frame):
        self.frames[camera] = frame

    def launch(self):
        self.now += 0.05
        taken = list(self.frames)[:4]
        for camera in taken:
            del self.frames[camera]
        return taken


@pytest.mark.parametrize("count, fits", [(1, True), (4, True), (12, False)])
def test_cameras_in_real_time(monkeypatch, count, fits):
    """Ten frames a second each: of twelve cameras eight can be answered, and each waits for a step before its own."""
    server = Slow()
    monkeypatch.setattr(camera_trials, "time", server)
    options = argparse.Namespace(fps=10.0, device="cpu", seconds=0.5)
    trial = camera_trials.Trial(server, count, [[0]] * 12, options)
    assert trial.fits == fits
    if fits:
        facts = trial.facts()
        assert 50 <= facts["p50_ms"] <= trial.p99 <= 99 and facts["late"] == 0 and facts["complete"] == 1
        assert facts["step_ms"] == pytest.approx(50, abs=0.1)


def test_what_a_trial_left_behind_is_no_frame_of_the_next():
    """One that is hopeless ends at once, with frames that wait."""
    delta = deltaconvert.convert(nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 4, 5))
    server = Pooled(delta, 4, pools=2)
    server.begin(4)
    for camera in range(4):
        server.put(camera, torch.rand(1, 3, 4, 5))
    server.begin(3)
    server.put(0, torch.rand(1, 3, 4, 5))
    assert server.launch() == [0]


class Here(streams.Worker):
    """A worker in this process, on one engine."""

    def __init__(self, side, name, options, gpu):
        self.bench = side(name, options)
        self.answers = []

    def begin(self, what, *args):
        self.answers.append(getattr(self.bench, what)(*args))

    def answer(self):
        return self.answers.pop(0)

    def end(self):
        pass


@pytest.mark.parametrize("workers", ["1", "1,2"])
def test_streams_writes_down_what_it_tried(tmp_path, monkeypatch, workers):
    if not cameras.VIDEOS.exists():
        pytest.skip(f"{cameras.VIDEOS} is not there")
    monkeypatch.setattr(engines, "ENGINES", {"torch channels_last": engines.ENGINES["torch channels_last"]})
    monkeypatch.setattr(camera_trials, "WARM", 0.02)
    monkeypatch.setattr(streams, "Worker", Here)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    case = cameras.Case(lambda: cameras.OfBytes(small, [1 / 255] * 3, [0.0] * 3), budget=0.1)
    monkeypatch.setitem(cameras.CASES, "small", case)
    out = tmp_path / "streams.json"
    size = "--networks small --size 32x64 --fps 50 --seconds 0.1 --frames 2 --capacity 1 --batches 1".split()
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/streams.py", *size, "--workers", workers, "--out", str(out)]
    )
    streams.main()
    (row,) = json.loads(out.read_text())["results"]
    assert row["network"] == "small" and row["size"] == [32, 64]
    deltas = [delta for number in workers.split(",") for delta in row["served"][number]]
    assert len(deltas) == sum(map(int, workers.split(",")))
    assert row["ratio"] == deltas[0]["cameras"] / max(1, row["dense"]["cameras"])
    for delta in deltas:
        assert delta["tried"]["1"]["complete"] > 0
        assert delta["relative_l2"] < 1 and 0 <= delta["density"] <= 1 and 0 < delta["work"] <= 1
    assert deltas[0]["ms of a step by its frames"]["1"] > 0
    assert row["dense"]["engine"] == "torch channels_last"


def test_streams_says_what_is_missing(tmp_path, monkeypatch):
    """Before any process is started: which file, and what works without."""
    monkeypatch.setattr(cameras, "VIDEOS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/streams.py", "--networks", "resnet50"])
    with pytest.raises(SystemExit, match=r"there is no .*pets_vtest.* --networks resnet50 --clips VIDEO"):
        streams.main()
    monkeypatch.setattr(sys, "argv", ["benchmarks/streams.py", "--clips", str(tmp_path / "mine.mp4")])
    with pytest.raises(SystemExit, match=r"there is no .*mine\.mp4$"):
        streams.main()


class Ends:
    """A side whose process ends at once."""

    def __init__(self, name, options):
        raise SystemExit(f"{name} cannot be")


def test_a_worker_that_ended(capfd):
    worker = streams.Worker(Ends, "small", argparse.Namespace(workers=[1]), 0)
    with pytest.raises(streams.WorkerDied, match="small: a process of it ended"):
        worker.answer()
    worker.end()
    assert "small cannot be" in capfd.readouterr().err


def test_videos_of_ones_own(tmp_path):
    """From their beginning, whatever frames the network's own clips begin with."""
    frames = torch.zeros(3, 32, 64, 3, dtype=torch.uint8)
    frames[1] = 200
    with video.VideoWriter(tmp_path / "mine.mp4", 30, (64, 32)) as writer:
        for frame in frames:
            writer.write(frame)
    (clip,) = cameras.clips("fastestdet_pets", "16x32", "cpu", range(2), [tmp_path / "mine.mp4"])
    assert [frame.shape for frame in clip] == [(1, 16, 32, 3)] * 2
    assert clip[0].max() < 20 and clip[1].min() > 180
    with pytest.raises(SystemExit, match="has no frame"):
        cameras.clips("resnet50", "16x32", "cpu", range(5, 6), [tmp_path / "mine.mp4"])
