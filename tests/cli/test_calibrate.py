"""deltaconvert calibrate and report."""

import json
from pathlib import Path

import pytest
import torch
from command_line import BACKEND, call, said

SMALL = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))

def boxes(output, least=0.0):
    score, row, column = output[0].amax(0).flatten().topk(3).values, 2.0, 3.0
    return [torch.stack([torch.tensor([row, column, row + 9, column + 9, s + least, 1]) for s in score.tolist()])]

def worst(ours, dense):
    return max(float((a - b).abs().max()) for a, b in zip(ours, dense))
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "cli_small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    call("convert", "--random", "--arch", "cli_small:net", "--input", "1x3x64x96", "-o", "a.delta", *BACKEND)
    return "a.delta"


def test_calibrate(small, clip):
    options = (
        "--metric",
        "cli_small:worst",
        "--budget",
        0.8,
        "--method",
        "front_to_back",
        "--at-once",
        2,
        "--seconds",
        600,
        "--check",
        clip,
        "--check-parts",
        2,
        "--json",
    )
    result = call("calibrate", small, "--video", clip, "--frames", 3, *options)
    assert "weights are untrained" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["file"] == "a.json" and 0 < facts["loss"] <= 0.8 and facts["metric"] == "worst"
    assert 0 < facts["checked"] <= 0.8 and json.loads(Path("a.json").read_text())["found"]["checked"] <= 0.8
    run = ("run", small, "--video", clip, "--limit", 3, "--json", *BACKEND)
    exact, found = (json.loads(call(*run, *extra).stdout) for extra in ((), ("--threshold", "a.json")))
    assert found["work"] < exact["work"] and found["difference"]["max"] <= 0.81  # on another way to add up


def test_calibrate_at_another_size_than_the_videos(small, clip):
    args = ("calibrate", small, "--method", "front_to_back", "--frames", 3, "--json")
    whole = json.loads(call(*args, "--video", clip).stdout)
    half = json.loads(call(*args, "--video", clip, "--check", clip, "--size", "48x32").stdout)
    assert not whole["cut_off"] and half["checked"] is not None and half["loss"] != whole["loss"]
    assert "there is none" in said(call(*args, "--video", clip, "--check-parts", 2, code=2))
    assert "no size such as 640x360" in said(call(*args, "--video", clip, "--size", "48", code=2))
    applied = call(*args, "--video", clip, "--size", "48x32", "--apply")
    assert "was for an input of 1x3x64x96 and is for 1x3x32x48 now" in said(applied)


def test_calibrate_that_is_cut_off_says_so(small, clip, monkeypatch):
    import deltaconvert

    whole = deltaconvert.calibrate
    monkeypatch.setattr(
        deltaconvert, "calibrate", lambda *args, **named: whole(*args, **{**named, "seconds": 1e-9})
    )
    args = ("calibrate", small, "--video", clip, "--frames", 3)
    told = said(call(*args))
    assert "cut off by --seconds after 1 trial: with --resume it could go on" in told
    assert "nothing better was found in that time than no thresholds: give more --seconds" in told
    result = call(*args, "--resume", "trials.jsonl")
    assert "goes on from trials.jsonl" in said(result) and "cut off)" in result.stdout


def test_calibrate_for_boxes(small, clip):
    """--decode makes of an output what a metric of detections takes."""
    pytest.importorskip("pycocotools")
    args = ("calibrate", small, "--video", clip, "--frames", 3, "--method", "front_to_back")
    boxes = ("--metric", "detection", "--decode", "cli_small:boxes(least=0.5)")
    assert json.loads(call(*args, *boxes, "--json").stdout)["metric"] == "detection"
    assert "decode= makes them" in said(call(*args, "--metric", "detection", code=1))
    assert "write it as package.module:function" in said(call(*args, "--decode", "boxes", code=2))
    assert "no callable 'boxen'; did you mean boxes" in said(
        call(*args, "--decode", "cli_small:boxen", code=2)
    )


def test_calibrate_on_frames_in_which_nothing_moves_says_so(small, tmp_path):
    pytest.importorskip("av")
    from deltaconvert.video import VideoWriter

    with VideoWriter(tmp_path / "still.mp4", 10, (96, 64), crf=10) as out:
        for _ in range(3):
            out.write(torch.full((64, 96, 3), 90, dtype=torch.uint8))
    simple = ("--method", "front_to_back")
    assert "something moves" in said(call("calibrate", small, "--video", tmp_path / "still.mp4", *simple))


def test_calibrate_by_time_against_a_compiled_network(small, clip, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(network) or network)
    by_time = ("--by", "time", "--against", "compile", "--method", "front_to_back", "--budget", 0.5, "--json")
    facts = json.loads(call("calibrate", small, "--video", clip, "--frames", 3, *by_time).stdout)
    assert facts["milliseconds"] > 0 and facts["dense_milliseconds"] > 0 and len(compiled) == 1


def test_report(small, clip):
    pytest.importorskip("jinja2")
    pytest.importorskip("PIL")
    call("report", small, "--video", clip, "--limit", 4, *BACKEND)
    assert "multiply-accumulates" in Path("a.report.html").read_text()
    hot = ("--out", "hot.mp4", "--overlay", "heatmap", "--no-compare", "--monitor", 1)
    told = call("run", small, "--video", clip, "--limit", 3, *hot, *BACKEND).stdout
    assert Path("hot.mp4").stat().st_size > 0 and "error observed in 3 frames" in told
    call("report", small, "--video", clip, "--limit", 4, "--no-compare", "--monitor", 1, *BACKEND)
    assert "by the monitor" in Path("a.report.html").read_text()
