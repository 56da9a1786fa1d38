"""benchmarks/cpu.py and memory.py: what they write down, on a network that takes no time."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cpu, cpu_bounds, engines, memory
from deltaconvert.backends.cpu.native import loops

ROOT = Path(__file__).parents[2]


def with_tiny(monkeypatch):
    """A network "tiny", whose masks grow by two pixels a side."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*layers).eval()
    monkeypatch.setattr(cpu, "SIZES", {"tiny": (1, 3, 24, 32)})
    monkeypatch.setattr(cpu, "network", lambda name: model)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return model


@pytest.fixture
def tiny(monkeypatch):
    return with_tiny(monkeypatch)


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


def bfloat16(network):
    rounded = engines.folded(network.graph).bfloat16()
    return lambda frame: lambda: rounded(frame.bfloat16())[0].float(), "1"


def absent(network):
    raise ModuleNotFoundError("No module named 'fastrun'")


def broken(network):
    raise RuntimeError("no such layer\nand more")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(JSON, what was printed) of a run with two engines that work and three that do not."""
    out = tmp_path_factory.mktemp("cpu") / "out.json"
    torches = "torch channels_last"
    more = {"bfloat16": bfloat16, "absent": absent, "broken": broken, "twin": engines.ENGINES[torches]}
    options = ["--densities", "0,10,100", "--repeats", 2, "--no-memory", "--out", out]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        with_tiny(patch)
        patch.setattr(engines, "ENGINES", engines.ENGINES | more)
        run(patch, *options, "--engines", f"{torches},twin,bfloat16,absent,broken")
    return out, printed.getvalue()


def test_a_run_says_where_it_was_and_what_it_skipped(measured):
    out, printed = measured
    facts = json.loads(out.read_text())
    for key in ("date", "command", "commit", "torch", "processor", "capability", "threads"):
        assert facts[key]
    assert bool(facts["core"]) == loops.FOUND
    own = facts["networks"]["tiny"]
    assert set(own["versions"]) == {"torch channels_last", "twin"}
    assert "deltaconvert[bench]" in own["skipped"]["absent"]
    assert own["skipped"]["broken"] == "RuntimeError: no such layer"
    assert "differs from torch's" in own["skipped"]["bfloat16"]
    assert all(f"{name} is skipped: {reason}" in printed for name, reason in own["skipped"].items())


def test_rows_of_a_run(measured):
    facts = json.loads(measured[0].read_text())
    still, some, everything = exact = [row for row in facts["results"] if row["case"] == "exact"]
    assert [row["density"] for row in exact] == [0, 0.1, 1]
    assert still["work"] == still["changed"] == 0 and still["bound"] is None
    assert some["changed_last"] > some["changed"] > 0.1 and 0 < some["work"] <= 1
    assert everything["work"] == everything["changed_last"] == 1
    for row in exact:
        assert row["error"] < 1e-5
        medians = row["medians_ms"]
        assert row["dense_ms"] == medians[row["best"]] == min(medians[name] for name in row["ratios"])
        assert row["ratio"] == row["ratios"][row["best"]] == row["dense_ms"] / row["delta_ms"]
    (truncated,) = (row for row in facts["results"] if row["case"] == "truncated")
    assert facts["networks"]["tiny"]["truncated"]["threshold"]["activation"].endswith("%")
    assert truncated["density"] == 0.1 and truncated["changed_last"] < some["changed_last"]


def test_the_table_of_a_run(measured, monkeypatch, capsys):
    run(monkeypatch, "table", measured[0])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| network | case | best dense | still | 10% | 100% |"
    cases = [line.split(" | ")[:2] for line in rows[:2]]
    assert cases == [["| tiny 32x24", "exact"], ["| tiny 32x24", "truncated"]]


def test_the_picture_of_a_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install "deltaconvert[plot]"')
    out = tmp_path / "speed.svg"
    run(monkeypatch, "plot", ROOT / "benchmarks" / "results" / "cpu.json", "--out", out)
    text = out.read_text()
    assert text.count("moving part of the frame") == 3 and "torch channels_last" in text
    run(monkeypatch, "plot", ROOT / "benchmarks" / "results" / "cpu.json", "--out", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_an_engine_has_one_colour_in_all_panels(tmp_path):
    pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install "deltaconvert[plot]"')
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


def test_the_bound_of_a_run():
    """Its share of the work is that of whichever run computed least; other sizes and thresholds say nothing."""

    def of(dtype, work, ratio, size=32, case="exact"):
        row = {"network": "tiny", "case": case, "density": 0.05, "work": work, "ratio": ratio}
        facts = {"processor": "one", "capability": "AVX2", "dtype": dtype, "threads": 2, "results": [row]}
        return facts | {"networks": {"tiny": {"shape": [1, 3, size, size]}}}

    runs = [of("float32", 0.1, 8), of("bfloat16", 0.2, 4) | {"core": "zen"}]
    others = [of("float16", 0.01, 9, 64), of("float64", 0.01, 9, 32, "truncated")]
    lines = cpu_bounds.table(runs + others).splitlines()
    assert lines[0].endswith("threads | 5% |") and lines[2:] == [
        "| tiny | one, AVX2 | float32 | 2 | 8.00x, 80% |",
        "| tiny | one (zen), AVX2 | bfloat16 | 2 | 4.00x, 40% |",
        "| tiny | one, AVX2 | float16 | 2 | 9.00x, 9% |",
    ]


def test_bfloat16_is_not_asked_of_onnxruntime():
    """It would compute in float32, which is no dense network in the type of the converted one."""
    pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "deltaconvert[bench]"')
    network, frame = nn.Sequential(nn.Conv2d(3, 4, 3)).eval().bfloat16(), torch.rand(1, 3, 8, 8).bfloat16()
    graph = torch.fx.symbolic_trace(network)
    found = engines.prepare(engines.Network(network, graph, frame, 1), ["onnxruntime"])
    assert not found.ready and "float32's" in found.skipped["onnxruntime"]
