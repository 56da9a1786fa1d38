"""A user's mistake is one message and an exit code, and nothing is written."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line import BACKEND, NET, call, said
from typer.testing import CliRunner

from deltaconvert.cli import app


@pytest.mark.parametrize("command", ["run", "report", "calibrate"])
def test_a_wrong_video_is_told_before_the_network_is_loaded(command, tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("jinja2", reason="report asks for it first")
    monkeypatch.chdir(tmp_path)
    assert "none.mp4: no such file" in said(call(command, "none.delta", "--video", "none.mp4", code=1))


def test_a_wrong_name_of_the_overlay_is_told_before_the_network_is_loaded(clip, tmp_path):
    text = said(call("run", "none.delta", "--video", clip, "--out", tmp_path / "a.txt", code=1))
    assert "a.txt: cannot be written as H.264" in text and list(tmp_path.iterdir()) == []


def test_a_node_that_is_not_there_is_told_before_the_network_is_planned(converted, clip, monkeypatch):
    from deltaconvert import container

    monkeypatch.setattr(container, "_build", None)  # whoever plans it fails
    for name, hint in (
        ("foo", "explain() lists"),
        ("features.1.con", "did you mean"),
        ("features.1", "parts"),
    ):
        text = said(call("run", converted, "--video", clip, "--threshold", f"{name}=3", code=2))
        assert f"'{name}' names no node" in text and hint in text
    assert "'foo' names no node" in said(call("explain", converted, "--threshold", "foo=3", code=2))


def test_a_node_that_the_plan_adds_is_not_refused(converted, clip):
    import deltaconvert

    names = deltaconvert.load(converted, backend="reference").names
    rules = [rule for name in names for rule in ("--threshold", f"{name}=0.01")]
    assert any("(" in name for name in names)
    call("run", converted, "--video", clip, "--limit", 2, *rules, *BACKEND)


def test_bench_names_the_extra_that_draws(converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = said(call("bench", converted, "--plot", tmp_path / "speed.svg", code=1))
    assert 'pip install "deltaconvert[plot]"' in text


@pytest.mark.parametrize("form", ["--onnx", "--triton"])
def test_export_names_the_extra_that_writes(tmp_path, monkeypatch, form):
    """Before it asks for the file: a network may take half a minute to load."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    text = said(call("export", tmp_path / "none.delta", form, tmp_path / "out", code=1))
    assert 'pip install "deltaconvert[onnx]"' in text


@pytest.mark.parametrize(
    "args, message",
    [
        (["explain"], "either a converted FILE or --arch"),
        (["explain", "--arch", "resnet81"], "did you mean resnet18"),
        (["explain", "--arch", "torchvision.models.resnet18"], "torchvision.models:resnet18"),
        (["explain", "--arch", "torch.nn:Identity"], "--input"),
        (["explain", "--arch", NET, "--input", "1x3"], "cannot|dimension|run"),
        (["explain", "--arch", NET, "--input", "1x3x0x5"], "no size such as"),
        (["explain", "--arch", NET, "--input", "big"], "no size such as"),
        (["explain", "--arch", NET, "--threshold", "x"], "no threshold"),
        (["explain", "--arch", NET, "--threshold", "-1"], "not negative"),
        (["run", "x", "--video", "y", "--threshold", "input:0.1"], "write it as input=0.1"),
        (["run", "x", "--video", "y", "--threshold", "input=1/0"], "input='1/0' is no threshold"),
        (["explain", "--arch", "./nets/mine.py:Net"], "of your own is nets.mine:Net"),
        (["explain", "--arch", "mine.py:Net"], "Write it as mine:Net"),
        (["convert", "--random", "--input", "1x3x8x8", "-o", "x"], "which network.*zoo"),
        (["export", "x", "--pt2", "y.pt2", "--dense-above", "0.5"], "is of ONNX files"),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--gate", "smooth=4"],
            "odd",
        ),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--gate", "smooth"],
            "sets nothing",
        ),
        (["explain", "--arch", NET, "--threshold", "0.1", "--threshold", "0.2"], "stands alone"),
        (["bench", "--arch", NET, "--density", "200"], "percentages"),
        (["bench", "--arch", NET, "--density", "a"], "no list of numbers"),
        (["convert", "--random", "--arch", NET, "--input", "1x3x8x8"], "--output"),
        (["convert", "--arch", NET, "--input", "1x3x8x8", "-o", "x"], "either a CHECKPOINT or --random"),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--std", "0,0,0"],
            "not zero",
        ),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--mean", "a"],
            "no list of numbers",
        ),
        (["run", "x", "--video", "y", "--size", "5"], "no size such as 640x360"),
        (["run", "x"], "--video"),
        (["run", "x", "--video", "y", "--overlay", "flames"], "none of mask, heatmap"),
        (["calibrate", "x", "--video", "y", "--by", "luck"], "none of work, time"),
        (["calibrate", "x", "--video", "y", "--budget", "2"], "--budget: budget=2.0: relative_l2 is a share"),
        (["calibrate", "x", "--video", "y", "--against", "compile"], "--against: .* --by time"),
        (["calibrate", "x", "--video", "y", "--against", "luck"], "none of torch, compile"),
        (["calibrate", "x", "--video", "y", "--metric", "luck"], "there is no metric 'luck'"),
        (["export", "x", "--onnx", "y", "--dense-above", "7"], "--dense-above"),
        (["explain", NET], f"--arch {NET}"),
        (["run", "x", "--video", "y", "--out", "none/a.mp4"], "no folder none: make it first"),
        (["report", "x", "--video", "y", "-o", "none/a.html"], "no folder none"),
        (["calibrate", "x", "--video", "y", "-o", "none/a.json"], "no folder none"),
        (["calibrate", "x", "--video", "y", "--resume", "none/a"], "no folder none"),
        (["explain", "x", "--html", "none/a.html"], "no folder none"),
        (["explain", "x", "--graph", "none/a.dot"], "no folder none"),
        (["bench", "x", "--plot", "none/a.svg"], "no folder none"),
        (["export", "x", "--onnx", "none/a.onnx"], "no folder none"),
        (["export", "x", "--pt2", "none/a.pt2"], "no folder none"),
        (["export", "x", "--onnx", "."], "is a folder: name a file"),
        (["export", "x", "--triton", __file__], "is a file: name a folder"),
        (["demo", "--folder", __file__], "is a file: name a folder"),
        (["convert", "x", "-o", "none/a.delta"], "no folder none"),
        (["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x.onnx"], "Name it x.delta"),
        (["fly"], "No such command"),
        (["zoo", "nonet"], "model_zoo has no network"),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = 1 if message.startswith("cannot|") else 2  # the size is a size, but not one for this network
    assert re.search(message, said(call(*args, code=code)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "x.delta", "-o", "x.delta"],
        ["convert", "x.delta", "--example", "clip.mp4", "-o", "clip.mp4"],
        ["run", "x.delta", "--video", "clip.mp4", "--out", "clip.mp4"],
        ["report", "x.delta", "--video", "clip.mp4", "-o", "./clip.mp4"],
        ["calibrate", "x.delta", "--video", "clip.mp4", "-o", "x.delta"],
        ["calibrate", "x.delta", "--video", "clip.mp4", "--resume", "clip.mp4"],
        ["bench", "x.delta", "--plot", "x.delta"],
        ["explain", "x.delta", "--html", "x.delta"],
        ["explain", "x.delta", "--graph", "x.delta"],
        ["export", "x.delta", "--onnx", "x.delta"],
        ["export", "x.delta", "--pt2", "x.delta"],
    ],
)
def test_what_a_command_reads_is_not_overwritten(args, converted, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    shutil.copy(converted, "x.delta")
    before = Path(args[-1]).read_bytes()
    assert f"{Path(args[-1])} is what the command reads" in said(call(*args, code=2))
    assert Path(args[-1]).read_bytes() == before


def test_damaged_files_are_exit_code_1(converted, tmp_path):
    (tmp_path / "short").write_bytes(converted.read_bytes()[:-5])
    assert "Copy it again" in said(call("explain", tmp_path / "short", code=1))
    assert "No such file or directory" in said(call("explain", tmp_path / "none", code=1))
    assert "'fpga' is none of auto, cpu, cuda, reference" in said(
        call("explain", converted, "--backend", "fpga", code=2)
    )


def test_files_that_there_are_not_and_what_their_names_may_mean(converted, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(converted, "street.delta")
    for command in ("run", "report", "calibrate"):
        text = said(call(command, "street.delt", "--video", clip, code=1))
        assert "street.delt: No such file or directory; did you mean street.delta?" in text
        text = said(call(command, "resnet18", "--video", clip, code=1))
        assert "resnet18 is a network: `deltaconvert convert --arch resnet18 WEIGHTS" in text
    assert "directory; " not in said(call("run", "nothing_alike", "--video", clip, code=1))


def test_a_threshold_that_can_hardly_be_meant_is_told(converted, clip):
    text = said(call("run", converted, "--video", clip, "--threshold", "300%", "--limit", 3, *BACKEND))
    assert "warning: a threshold of" in text and "at the input is more than half of what" in text


def test_words_of_options_are_the_librarys():
    from deltaconvert.calibration.asked import METHODS
    from deltaconvert.watching import watch

    assert "|".join(watch.MARKS) in call("run", "--help").stdout
    text = said(call("calibrate", "x", "--video", "y", "--method", "luck", code=2))
    assert f"none of {', '.join(METHODS)}" in text


def test_a_file_that_may_not_be_written(tmp_path, monkeypatch):
    from deltaconvert.cli import options

    monkeypatch.setattr(options.os, "access", lambda path, how: False)  # root may write anywhere
    text = said(call("explain", "x", "--html", tmp_path / "a.html", code=2))
    assert "may not be written" in text
    pytest.importorskip("jinja2", reason="report asks for it first")
    pytest.importorskip("PIL", reason="report asks for it first")
    for command, option in (("report", "--out"), ("calibrate", "--output")):
        text = said(call(command, tmp_path / "x.delta", "--video", "y", code=2))
        assert f"value for {option}: " in text and "may not be written" in text


def test_apply_asks_first_whether_the_file_may_be_replaced(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, how: path != converted.parent)
    args = ("calibrate", converted, "--video", "y", "-o", tmp_path / "a.json", "--apply")
    assert "value for --apply: " in said(call(*args, code=2))


def test_serve_says_what_is_missing(converted, monkeypatch):
    pytest.importorskip("uvicorn")
    text = said(call("serve", converted, "--device", "gpu", code=1))
    assert "there is no device 'gpu'" in text and "the first time on a machine kernels are compiled" in text
    monkeypatch.setitem(sys.modules, "ray", None)
    text = said(call("serve", converted, "--workers", 2, code=1))
    assert 'pip install "deltaconvert[serve]"' in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(converted, clip):
    here = [converted, "--device", "cuda"]
    for command in (["run", "--video", clip], ["bench"], ["explain"], ["calibrate", "--video", clip]):
        text = said(call(command[0], *here, *command[1:], code=1))
        assert "cuda is not to be had here" in text and "Take cpu" in text


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "explain", str(tmp_path / "none.delta")])
    assert result.exit_code == 1 and "Traceback" in result.stderr and "No such file" in result.stderr
