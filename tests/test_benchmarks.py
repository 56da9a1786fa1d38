"""benchmarks/: what the scripts write down, on a network that takes no time."""

import argparse
import functools
import itertools
import json
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import deltaconvert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    camera_trials,
    cameras,
    cpu,
    engines,
    gpu,
    gpu_ahead,
    gpu_dense,
    gpu_frames,
    gpu_record,
    memory,
    streams,
)
from benchmarks.camera_servers import Pooled  # noqa: E402


@pytest.fixture
def tiny(monkeypatch):
    """A network "tiny", whose masks grow by two pixels a side."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*layers).eval()
    monkeypatch.setattr(cpu, "SIZES", {"tiny": (1, 3, 24, 32)})
    monkeypatch.setattr(cpu, "network", lambda name: model)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return model


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks/cpu.py", *map(str, arguments)])
    cpu.main()


@pytest.mark.parametrize("script", ["coverage", "cpu", "onnx"])
def test_scripts_hide_no_package(script):
    """onnx.py and coverage.py have the names of packages that onnxruntime, torch and numba import."""
    folder = ROOT / "benchmarks"
    code = (
        f"import importlib.util, runpy, sys; sys.path[0] = {str(folder)!r}; runpy.run_path('{folder}/{script}.py')\n"
        "for name in ('coverage', 'onnx'):\n"
        "    found = importlib.util.find_spec(name)\n"
        f"    assert found is None or not found.origin.startswith({str(folder)!r}), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_runs_are_merged(tiny, monkeypatch, tmp_path):
    common = ("--repeats", 1, "--no-memory", "--engines", "torch channels_last")
    exact, truncated, out = (tmp_path / f"{name}.json" for name in ("exact", "truncated", "both"))
    run(monkeypatch, "--densities", "10", "--truncate-at", 0, *common, "--out", exact)
    run(monkeypatch, "--densities", "", "--truncate-at", 20, *common, "--out", truncated)
    run(monkeypatch, "merge", exact, truncated, "--out", out)
    facts, first = json.loads(out.read_text()), json.loads(exact.read_text())
    assert [(row["case"], row["density"]) for row in facts["results"]] == [("exact", 0.1), ("truncated", 0.2)]
    assert facts["results"][0] == first["results"][0] and "truncated" in facts["networks"]["tiny"]
    assert first["command"] in facts["command"] and "--truncate-at 20" in facts["command"]
    first["torch"] = "0.1"
    exact.write_text(json.dumps(first))
    with pytest.raises(SystemExit, match="different"):
        run(monkeypatch, "merge", exact, truncated, "--out", out)


def test_what_a_run_writes_down(tiny, monkeypatch, tmp_path, capsys):
    def bfloat16(network):
        rounded = engines.folded(network.graph).bfloat16()
        return lambda frame: lambda: rounded(frame.bfloat16())[0].float(), "1"

    def absent(network):
        raise ModuleNotFoundError("No module named 'fastrun'")

    def broken(network):
        raise RuntimeError("no such layer\nand more")

    more = {
        "bfloat16": bfloat16,
        "absent": absent,
        "broken": broken,
        "twin": engines.ENGINES["torch channels_last"],
    }
    monkeypatch.setattr(engines, "ENGINES", engines.ENGINES | more)
    names = "torch channels_last,twin,bfloat16,absent,broken"
    out = tmp_path / "out.json"
    run(
        monkeypatch,
        "--densities",
        "0,10,100",
        "--repeats",
        2,
        "--no-memory",
        "--engines",
        names,
        "--out",
        out,
    )
    facts = json.loads(out.read_text())
    for key in ("date", "command", "torch", "processor", "capability", "threads"):
        assert facts[key]
    own = facts["networks"]["tiny"]
    assert set(own["versions"]) == {"torch channels_last", "twin"}
    assert "deltaconvert[bench]" in own["skipped"]["absent"]
    assert own["skipped"]["broken"] == "RuntimeError: no such layer"
    assert "differs from torch's" in own["skipped"]["bfloat16"]
    printed = capsys.readouterr().out
    assert all(f"{name} is skipped: {reason}" in printed for name, reason in own["skipped"].items())

    exact = [row for row in facts["results"] if row["case"] == "exact"]
    assert [row["density"] for row in exact] == [0, 0.1, 1]
    still, some, everything = exact
    assert still["work"] == still["changed"] == 0 and still["bound"] is None
    assert some["changed_last"] > some["changed"] > 0.1 and 0 < some["work"] <= 1
    assert everything["work"] == everything["changed_last"] == 1
    for row in exact:
        assert row["error"] < 1e-5
        assert (
            row["dense_ms"]
            == row["medians_ms"][row["best"]]
            == min(row["medians_ms"][k] for k in row["ratios"])
        )
        assert row["ratio"] == row["ratios"][row["best"]] == row["dense_ms"] / row["delta_ms"]
    (truncated,) = (row for row in facts["results"] if row["case"] == "truncated")
    assert own["truncated"]["threshold"]["activation"].endswith("%")
    assert truncated["density"] == 0.1 and truncated["changed_last"] < some["changed_last"]

    run(monkeypatch, "table", out)
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| network | case | best dense | still | 10% | 100% |"
    assert [line.split(" | ")[:2] for line in table[2:4]] == [
        ["| tiny 32x24", "exact"],
        ["| tiny 32x24", "truncated"],
    ]


def test_the_picture_of_a_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'deltaconvert[plot]'")
    out = tmp_path / "speed.svg"
    run(monkeypatch, "plot", ROOT / "benchmarks" / "results" / "cpu.json", "--out", out)
    text = out.read_text()
    assert text.count("moving part of the frame") == 3 and "torch channels_last" in text
    run(monkeypatch, "plot", ROOT / "benchmarks" / "results" / "cpu.json", "--out", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_an_engine_has_one_colour_in_all_panels(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'deltaconvert[plot]'")
    from deltaconvert.drawing.plot import Panel, draw

    times = ([0.0, 0.5], [1.0, 2.0])
    panels = [
        Panel(name, *times, dense, [0.0, 0.6])
        for name, dense in (("few", {"b": [4.0, 4.0]}), ("all", {"a": [5.0, 5.0], "b": [4.0, 4.0]}))
    ]
    draw(panels, tmp_path / "both.svg")
    text = (tmp_path / "both.svg").read_text()
    assert text.count(">a</text>") == text.count(">b</text>") == 1
    colours = re.findall(r"stroke: (#\w+); stroke-width: 1.2", text)
    assert len(set(colours)) == 2 and sorted(map(colours.count, set(colours))) == [2, 3]


def test_the_threshold_that_truncates(tiny):
    """A larger one than needed would drop changes inside of the box: at a smaller one masks grow."""
    import deltaconvert

    base = torch.rand(1, 3, 24, 32)
    percent = cpu.truncating(tiny, base, 0.1)
    grown = []
    for threshold in (percent, percent / 1.2):
        rules = {"activation": f"{threshold}%"}
        delta = deltaconvert.convert(tiny, base, threshold=rules, backend="reference")
        for frame in cpu.video(base, 0.1, 3):
            delta(frame)
        grown.append(cpu.grows(delta))
    assert grown == [False, True]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_memory_with_state(tiny, monkeypatch):
    arguments = ["benchmarks/memory.py", "tiny", "--size", "256x256", "--frames", "1"]
    found = {}
    for kind in ("dense", "delta"):
        options = memory.arguments([*arguments[1:], "--kind", kind])
        found[kind] = memory.measure(options)
        assert found[kind]["peak_mb"] >= found[kind]["running_mb"] > 0
    assert found["delta"]["state_mb"] > (3 + 8 + 8) * 4 * 256 * 256 / 1e6
    monkeypatch.setattr(sys, "argv", [str(ROOT / arguments[0]), *arguments[1:]])
    child = memory.child("torch")
    assert set(child) == {"peak_mb"} and 50 < child["peak_mb"] < found["delta"]["peak_mb"]


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
    units = gpu.of_worth()
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


def test_accuracy_page(tmp_path):
    """The work at the accepted loss lies on a curve that rises; a lucky point counts with its neighbours."""
    from benchmarks.accuracy_page import STYLES, draw, least, plain, rising, side_by_side, table

    assert rising([0, 2, 1, 3]) == [0, 1.5, 1.5, 3] and rising([3, 2, 1]) == [2, 2, 2]
    curve = {0.8: 0.0, 0.4: 0.004, 0.2: 0.012, 0.1: 0.0, 0.05: 0.5}
    rows = [
        {"way": way, "work": work * (2 if way == "paper 1" else 1), "loss": loss, "accepted": 0.005}
        for way in ("ours 1", "paper 1", *(way for way in STYLES if way not in ("ours", "paper")))
        for work, loss in curve.items()
    ]
    rows.append({"way": "dense", "work": 1.0, "loss": 0.0, "accepted": 0.005, "truth": "T", "score": 0.9})
    ours = least(rows, "ours")
    assert 0.2 < ours < 0.4 and least(rows, "paper") == pytest.approx(2 * ours)
    assert table({"a": rows}).splitlines()[-1].endswith("| 0.50 |")
    assert side_by_side({"a": rows}).splitlines()[-1].startswith(f"| a | .{round(100 * ours)} : ")
    assert least(rows, "ours", 2) < ours
    firmer = [row | {"plain_loss": row["loss"] * 2} for row in rows]
    assert float(plain({"a": firmer}).splitlines()[-1].split("|")[2]) > ours
    pytest.importorskip("matplotlib")
    draw({"a": rows}, tmp_path / "a.svg")
    assert "calibrate" in (tmp_path / "a.svg").read_text()


def test_a_lucky_point_behind_a_loss_does_not_count():
    from benchmarks.accuracy_families import highest

    def curve(*losses: float) -> list[dict[str, float]]:
        return [{"loss": loss, "accepted": 0.005, "strength": n} for n, loss in enumerate(losses)]

    assert highest(curve(-0.01, 0.005, 0.02, 0.0))["strength"] == 1
    assert highest(curve(0.01, 0.0)) is None


def test_accuracy_check_chooses_by_the_frames_between():
    """The least work at so many times the accepted loss; ours has the paper's candidates too."""
    from benchmarks.accuracy_check import FACTORS, HIGHER, best_of, higher_and_lower, ours
    from deltaconvert.calibration.search import GATES
    from deltaconvert.calibration.setting import Setting
    from deltaconvert.gate import Gate

    rows = [
        {"way": way, "strength": n, "work": work, "loss": loss, "accepted": 0.004}
        for way, points in {
            "ours": [(0.1, 0.02), (0.3, 0.004), (0.5, 0.0)],
            "paper": [(0.2, 0.006), (0.4, 0.003), (0.9, 0.0)],
        }.items()
        for n, (work, loss) in enumerate(points)
    ]
    chosen = {key: (row["way"], row["work"]) for key, row in best_of(rows).items()}
    assert chosen == {
        ("ours checked", 0.5): ("ours", 0.5),
        ("ours checked", 1.0): ("ours", 0.3),
        ("ours checked", 2.0): ("paper", 0.2),
        ("paper checked", 0.5): ("paper", 0.9),
        ("paper checked", 1.0): ("paper", 0.4),
        ("paper checked", 2.0): ("paper", 0.2),
    }
    paper = Setting((0.1, 0.2))
    assert len(higher_and_lower([paper])) == len(FACTORS) and paper in higher_and_lower([paper])
    tried = [
        Setting((0.5, share), gate=Gate(dilate=2), narrow=frozenset({1})).to_json()
        | {"loss": loss, "work": work}
        for share, loss, work in ((0.1, 0.01, 0.8), (0.2, 0.02, 0.9), (0.3, 0.03, 0.5))
    ]
    found = ours(tried, [paper], inputs=[0])
    assert [setting.shares[1] for setting in found[:2]] == [0.1, 0.3]  # the other is beaten
    assert {(setting.gate, setting.narrow) for setting in found[:2]} == {(Gate(dilate=2), frozenset({1}))}
    assert len(found) == 2 + len(HIGHER) * len(GATES) and {s.gate for s in found[2:]} == set(GATES)
    assert {s.shares[1] for s in found[2:]} == {0.2 * factor for factor in HIGHER}
