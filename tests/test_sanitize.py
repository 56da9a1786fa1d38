""".ci/sanitize.py: which runs it makes, and how it reads a tool's output."""

from __future__ import annotations

import importlib
import itertools
import time
from pathlib import Path

import pytest
import torch
from graph_on_cpu import with_graphs
from on_cpu import GXX
from oracle import assert_close, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends import cuda

FOLDER = Path(__file__).parents[1] / ".ci"
FOUND = "========= Invalid __shared__ write of size 4 bytes\n=========     at {}+0x10 in x.cu\n"


@pytest.fixture(scope="module")
def sanitize():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # where Python looks first when it runs the script
        yield importlib.import_module("sanitize")


@pytest.fixture
def played(sanitize):
    return importlib.import_module("sanitize_play")


def test_runs_in_the_order_that_is_asked_for(sanitize):
    every = [run.name for run in sanitize._wanted([])]
    assert len(set(every)) == len(every) and "synccheck of gated half 0.1" in every
    asked = ["racecheck of depthwise", "in graphs", "racecheck of depthwise tf32", "initcheck of wide half"]
    names = [run.name for run in sanitize._wanted(asked)]
    assert names[:2] == ["racecheck of depthwise half 0.0", "racecheck of depthwise tf32 0.0"]
    assert names[-1] == "initcheck of wide half 0.0"
    assert all(name.endswith("in graphs") for name in names[2:-1])


def test_a_run_ends_where_it_played_and_found_what_was_planted(sanitize, capsys):
    run, kernel = sanitize._wanted(["racecheck of wide half"])[0], sorted(sanitize.kernels())[0]
    told = {
        FOUND.format("canary") + "PLAYED gate.cu\n": (False, "0 findings in our kernels, 0 elsewhere, 3 s\n"),
        FOUND.format("elsewhere") + FOUND.format("canary") + "PLAYED\n": (
            False,
            "0 findings in our kernels, 1",
        ),
        FOUND.format(kernel) + FOUND.format("canary") + "PLAYED\n": (True, "1 findings in our kernels"),
        FOUND.format("canary"): (True, "not ended"),
        "PLAYED\n": (True, "did not see the canary"),
    }
    for text, (bad, words) in told.items():
        assert sanitize._judge(run, text, 3.0) is bad
        assert words in capsys.readouterr().out


def test_what_a_still_frame_skips_is_played_in_graphs_and_not_watched(sanitize):
    runs = sanitize._wanted(["of skipped"])
    assert {run.tool for run in runs} == {"memcheck", "racecheck", "synccheck"}
    assert all(run.graph and run.watched == ["sparsify", "wake", "canary"] for run in runs)
    assert {"sparsify", "wake"} < sanitize.kernels()


def test_every_way_to_compute_a_layer_takes_its_turn(played):
    ways, heads = played.Ways(), {name: lambda name=name: name for name in "abc"}
    order = []
    for ways.first in range(3):
        ways.layers = 0
        order.append((ways.next(heads), ways.next(heads), ways.next({"only": lambda: "only"})))
    assert order == [("a", "b", "only"), ("b", "c", "only"), ("c", "a", "only")]
    assert ways.most == 3
    assert set(played.IN_EVERY_WAY) < {case.name for case in played.cases()}


@pytest.mark.parametrize("heard_at", [1, 2, 3])
def test_a_tool_that_says_nothing_of_the_canary_is_asked_once_more(sanitize, tmp_path, capsys, heard_at):
    (tmp_path / "sings").write_text(FOUND.format("canary"))
    tool = tmp_path / "tool"
    tool.write_text(
        f"""#!/bin/sh
        cd {tmp_path}; echo "$CUDA_VISIBLE_DEVICES" >> gpus; echo PLAYED gate.cu
        [ $(wc -l < gpus) -lt {heard_at} ] || cat sings
        """
    )
    tool.chmod(0o755)
    place = sanitize.Place(str(tool), tmp_path, time.monotonic() + 60, itertools.cycle("02"))
    assert sanitize._run(sanitize._wanted(["memcheck of wide half"])[0], place) is (heard_at == 3)
    assert (tmp_path / "gpus").read_text().split() == ["0", "2"][:heard_at]
    assert ("once more" in capsys.readouterr().out) is (heard_at > 1)


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_frames_are_played_launch_by_launch(played, monkeypatch, threshold):
    with_graphs(monkeypatch)
    monkeypatch.setattr(cuda, "Recording", played.BySteps)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    video = scripted_video((2, 3, 19, 41), torch.float32)
    ours, theirs = (
        deltaconvert.convert(network, video[0], threshold=threshold, backend=b) for b in ("cuda", "reference")
    )
    for t in (0, 1, 2, 10, 10):
        assert_close(ours(video[t]), theirs(video[t]), f"frame {t}")
    recording = ours._program._backend._recording
    assert recording._graph is None and recording.addresses is not None
    assert "launch by launch" in next(iter(recording.outside.values()))
