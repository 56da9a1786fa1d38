"""deltaconvert bench: what it measures, and draws."""

import json

import pytest
from command_line import BACKEND, call, said


def test_bench_says_what_it_measured(converted):
    args = ("bench", converted, "--density", "0,10,100", "--frames", 2, *BACKEND)
    found = json.loads(call(*args, "--json").stdout)
    still, some, everything = found["rows"]
    assert still["density"] == 0 and still["work"] < 0.05
    assert 0.05 < some["density"] < 0.15 and 0 < some["work"] < 1
    assert everything["density"] == everything["work"] == 1
    assert all(row["ratio"] == pytest.approx(row["dense_ms"] / row["delta_ms"]) for row in found["rows"])
    for key in ("date", "command", "torch", "processor", "threads", "baseline"):
        assert found[key]
    assert len(call(*args).stdout.splitlines()) == 6


def test_bench_draws_what_it_measured(converted, tmp_path):
    pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install "deltaconvert[plot]"')
    args = ("bench", converted, "--density", "0,100", "--frames", 1, *BACKEND)
    assert "speed.svg: time against density" in call(*args, "--plot", tmp_path / "speed.svg").stdout
    text = (tmp_path / "speed.svg").read_text()
    assert "1x3x64x96" in text and "milliseconds a frame" in text
    assert "ends in no picture format" in said(call(*args, "--plot", tmp_path / "speed.txt", code=1))
