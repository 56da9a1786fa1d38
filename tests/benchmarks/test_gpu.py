"""benchmarks/gpu.py: units, slices and records, timed by counting."""

import functools
import itertools
import json
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from benchmarks import gpu, gpu_ahead, gpu_dense, gpu_frames, gpu_record

GPU = {"date": "2026-01-02", "gpu": "a GPU", "torch": "2.0", "cuda": "13.0", "command": "python x"}


@pytest.fixture
def without_a_gpu(monkeypatch):
    """gpu.py, timing by counting: a frame of the network takes 4 ms dense and 1 ms converted."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model, base = nn.Sequential(*layers).eval(), torch.rand(2, 3, 24, 32)
    by_reference = functools.partial(gpu.deltaconvert.convert, backend="reference")
    monkeypatch.setattr(gpu.deltaconvert, "convert", by_reference)
    monkeypatch.setattr(gpu_record, "environment", lambda: dict(GPU))
    monkeypatch.setattr(gpu, "model_and_frame", lambda unit: (model, base))
    monkeypatch.setattr(
        gpu, "engines", lambda model, frame, *rest: iter((("eager", model), ("graph", model)))
    )
    monkeypatch.setattr(gpu_dense, "median_ms", lambda run, frame: 4.0)
    monkeypatch.setattr(gpu, "median_ms", lambda run, frame: 4.0)
    monkeypatch.setattr(gpu, "ceilings", lambda kind: {"bytes_per_second": 1e9, "flops_per_second": 1e12})
    monkeypatch.setattr(
        gpu,
        "timed",
        lambda run, frames, *place: ([1.0] * len(frames), 0.5, [run(frame) for frame in frames][-1]),
    )
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")


def run_gpu(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", *map(str, arguments)])
    gpu.main()


def test_gpu_runs_in_slices(without_a_gpu, monkeypatch, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    common = ("--frames", 5, "--densities", "0,5,100", "--out", out, "--no-clips", "--modes")
    run_gpu(monkeypatch, "--units", "one:float:2", *common)
    first = json.loads(out.read_text())
    still, some, everything = first["results"]
    assert [row["case"] for row in first["results"]] == ["still", "5%", "100%"]
    assert still["work"] == 0 and everything["work"] == 1
    assert still["floor_ms"] == pytest.approx(4 * 2 * 24 * 32 * 3 / 1e9 * 1e3), (
        "a still frame is read as well"
    )
    assert 0.05 < some["work"] < 0.3 and some["efficiency"] == 4 * some["work"]
    assert some["roofline"] == some["floor_ms"] and some["layers"] and max(some["layers"]) < 0.3
    values, weights = 2 * 24 * 32 * (3 + 3 + 8 + 8 + 8), 8 * 3 * 9 + 8 + 8 * 8 * 9 + 8
    assert everything["floor_ms"] == pytest.approx(4 * (values + weights) / 1e9 * 1e3)
    assert all(row["error"] < 1e-5 for row in first["results"])

    run_gpu(monkeypatch, "--units", "one:float:2,two:float:2", *common)
    second = json.loads(out.read_text())
    assert second["results"][:3] == first["results"], "what is there is not measured again"
    assert [row["network"] for row in second["results"]] == ["one"] * 3 + ["two"] * 3
    run_gpu(monkeypatch, "--units", "three:float:2", "--seconds", -1, *common)
    assert json.loads(out.read_text())["results"] == second["results"]
    assert "time is over before three:float:2" in capsys.readouterr().out
    monkeypatch.setattr(gpu_record, "environment", lambda: {**GPU, "gpu": "another"})
    with pytest.raises(SystemExit, match="measured elsewhere"):
        run_gpu(monkeypatch, "--units", "four:float:2", *common)

    run_gpu(monkeypatch, "table", out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| network | batch | type | best dense | still | 5% | 100% |"
    assert lines[2] == "| one 1920x1080 | 2 | float | eager, 4 ms | 4.0x | 4.0x | 4.0x |"
    (told,) = [line for line in lines if line.startswith("a GPU, torch 2.0, CUDA 13.0; measured ")]
    assert all(row["commit"] in told and row["date"] in told for row in first["results"])
    assert sum(line.startswith("| two") for line in lines) == 1 + 3


def test_gpu_units_fail_alone(without_a_gpu, monkeypatch, tmp_path, capsys):
    """What one unit raises is printed, and the others are measured; what could not be compiled in time comes last."""
    out, seen = tmp_path / "gpu.json", []

    def one(unit, options):
        seen.append(unit.network)
        if unit.network == "bad":
            raise RuntimeError("too large")
        numbers = ("threshold", "density", "delta_ms", "p99_ms", "host_ms", "dense_ms", "ratio", "work")
        numbers += ("efficiency", "roofline", "state_bytes", "peak_bytes")
        named = {"case": "still", "best": "eager", "date": "today", "commit": "abc"}
        return [dict.fromkeys(numbers, 1.0) | unit._asdict() | named]

    def compiler(command, timeout, **options):
        unit = gpu.Unit.of(command[command.index("--units") + 1])
        if unit.network == "slow":
            raise subprocess.TimeoutExpired(command, timeout)
        gpu.kept_file(tmp_path, unit, "compile").touch()

    monkeypatch.setattr(gpu_ahead.subprocess, "run", compiler)
    monkeypatch.setattr(gpu, "measure", one)
    ahead = ("--kept", tmp_path, "--ahead", 2, "--modes", "compile")
    run_gpu(monkeypatch, "--units", "slow:half:1,bad:half:1,quick:half:1", "--out", out, *ahead)
    assert seen == ["bad", "quick", "slow"]
    told = capsys.readouterr()
    assert "too large" in told.err and "slow:half:1 compile was not compiled in time" in told.out
    assert [row["network"] for row in json.loads(out.read_text())["results"]] == ["quick", "slow"]


def test_gpu_units_of_a_queue(without_a_gpu, monkeypatch, tmp_path):
    """Two processes share a file: here the second begins while the first one measures its first unit."""
    queue, out = tmp_path / "queue", tmp_path / "gpu.json"
    queue.write_text("one:float:2\ntwo:float:2\nthree:float:2\n")
    assert next(gpu.taken(queue)) == gpu.Unit("one", "float", 2)
    run_gpu(monkeypatch, "--queue", queue, "--beside", 3, "--densities", "0,100", "--no-clips", "--out", out)
    rows = json.loads(out.read_text())["results"]
    assert [row["network"] for row in rows] == ["two", "two", "three", "three"]
    assert {row["beside"] for row in rows} == {3}
    assert not queue.read_text() and not list(gpu.taken(queue))


@pytest.mark.parametrize(
    ("slow_call", "expected"), [(1, [2.0] * 6), (9, [2.0] * 3), (99, [77.0] + [99.0] * 5)]
)
def test_gpu_frames_that_wait_for_their_call_do_not_count(monkeypatch, slow_call, expected):
    """A device that is played by counting: it works for 2 at each frame, and slept for 4 more before. A call takes the
    host `slow_call`."""
    host, device = 0, 0  # now; when the device has done all that it was told

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = max(host, device)

        def query(self):
            return self.at <= host

        def elapsed_time(self, end):
            return float(end.at - self.at)

    def sleep(cycles):
        nonlocal device
        device = cycles

    def run(frame):
        nonlocal host, device
        host += slow_call
        device = max(host, device) + 2

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_dense, "AHEAD", 4)
    assert gpu_dense.timed(run, [None] * 6)[0] == expected


def test_gpu_networks_that_do_not_fit_beside_each_other(without_a_gpu, monkeypatch, tmp_path):
    """Dense is timed before and after, and the faster one counts; only eager stays, for the error."""
    before_and_after, alive, graphs = iter((4.0, 3.0)), weakref.WeakSet(), []

    def engines(model, frame, modes, kept):
        ms = next(before_and_after)
        for name in ("eager", "graph"):
            run = nn.Sequential(*model)
            alive.add(run)
            times[run] = ms if name == "graph" else 9.0
            yield name, run

    def timed(run, frames, *place):
        graphs.append(len(alive))
        return [1.0] * len(frames), 0.5, [run(frame) for frame in frames][-1]

    times = weakref.WeakKeyDictionary()
    monkeypatch.setattr(gpu, "engines", engines)
    monkeypatch.setattr(gpu_dense, "median_ms", lambda run, frame: times[run])
    monkeypatch.setattr(gpu, "timed", timed)
    monkeypatch.setattr(gpu, "APART", (gpu.Unit("one", "float", 2),))
    out = tmp_path / "gpu.json"
    run_gpu(monkeypatch, "--units", "one:float:2", "--densities", "0,100", "--no-clips", "--out", out)
    rows = json.loads(out.read_text())["results"]
    assert [row["dense_apart_ms"] for row in rows] == [[4.0, 3.0]] * 2
    assert [(row["dense_ms"], row["ratio"], row["efficiency"]) for row in rows] == [
        (3.0, 3.0, 0.0),
        (3.0, 3.0, 3.0),
    ]
    assert set(graphs) == {1}


def test_gpu_merge(monkeypatch, tmp_path, capsys):
    """Whole units replace those of the record; others are left out, and so is what was measured elsewhere."""
    record, new = tmp_path / "record.json", tmp_path / "new.json"

    def rows(unit, cases, commit):
        return [{**gpu.Unit.of(unit)._asdict(), "case": case, "commit": commit} for case in cases]

    old = rows("unet:half:1", gpu_record.BOXES, "old") + rows("resnet50:half:1", gpu_record.BOXES, "old")
    fresh = rows("resnet50:half:1", (*gpu_record.BOXES, "a clip"), "new") + rows(
        "unet:half:1", ("still",), "new"
    )
    record.write_text(json.dumps({**GPU, "results": old}))
    new.write_text(json.dumps({**GPU, "results": fresh}))
    run_gpu(monkeypatch, "merge", new, "--out", record)
    merged = json.loads(record.read_text())
    assert merged["results"] == fresh[:8] + old[:7] and "date" not in merged
    assert "unet:half:1: left out, it has no 1%" in capsys.readouterr().out
    new.write_text(json.dumps({**GPU, "gpu": "another", "results": fresh}))
    with pytest.raises(SystemExit, match="another in the new file"):
        run_gpu(monkeypatch, "merge", new, "--out", record)


def test_gpu_clips(without_a_gpu, monkeypatch, tmp_path):
    """With codec noise at threshold 0, and without it."""
    images = [torch.full((6, 8, 3), 100 + index % 2, dtype=torch.uint8) for index in range(40)]
    monkeypatch.setattr(gpu_frames, "_decoded", lambda path, count: images[:count])
    options = (
        "--units",
        "one:float:2",
        "--frames",
        6,
        "--densities",
        "0",
        "--modes",
        "--out",
        tmp_path / "c",
    )
    run_gpu(monkeypatch, *options)
    assert len(json.loads((tmp_path / "c").read_text())["results"]) == 1, "of larger batches those asked for"
    (tmp_path / "c").unlink()
    run_gpu(monkeypatch, *options, "--clips-of", "two:float:2,one:float:2")
    _, *clips = json.loads((tmp_path / "c").read_text())["results"]
    assert len(clips) == 2 * len(gpu.CLIPS) and all(row["density"] is None for row in clips)
    assert [row["work"] for row in clips] == [1, 1, 0, 0] and all("error" in row for row in clips)


def test_gpu_units():
    units = gpu.most_telling_first()
    assert len(units) == len(set(units)) == 6 * 4 + 6 + 1
    assert str(units[0]) == "resnet50:half:1" and gpu.Unit.of("hrnet_w32:tf32:64") in units
    assert gpu.Unit.of("hrnet_w32:tf32:64").size == (384, 288)


def test_gpu_frames_are_next_to_each_other():
    walk = gpu_frames.there_and_back("abc")  # "a" was just played
    assert "".join(itertools.islice(walk, 9)) == "bcbabcbab"
    assert [gpu_dense.repeats(ms) for ms in (0.1, 10, 200)] == [100, 15, 5]


def test_dense_engines_are_raced(monkeypatch):
    """The first engine stays beside the fastest; what has lost is gone before the next one is made."""
    took, alive = {"eager": 9.0, "graph": 5.0, "compile": 7.0, "products": 4.0}, weakref.WeakSet()
    monkeypatch.setattr(gpu_dense, "median_ms", lambda run, _: took[run.name])

    class Engine:
        def __init__(self, name: str):
            self.name = name
            alive.add(self)

    def engines():
        for name in took:
            yield name, Engine(name)
            assert len(alive) <= 2

    times, left = gpu_dense.raced(engines(), torch.zeros(1, 3, 4, 4))
    assert times == took and [*left] == ["eager", "products"] and left["products"].name == "products"
