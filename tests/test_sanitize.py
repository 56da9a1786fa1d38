""".ci/sanitize.py: which runs are asked for, and what a tool's words are taken for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "sanitize.py"
FOUND = "========= Invalid __shared__ write of size 4 bytes\n=========     at {}+0x10 in x.cu\n"


@pytest.fixture(scope="module")
def sanitize():
    spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_runs_in_the_order_that_is_asked_for(sanitize):
    every = [run.name for run in sanitize._wanted([])]
    assert len(set(every)) == len(every) and "synccheck of gated half 0.1" in every
    asked = ["racecheck of depthwise", "in graphs", "racecheck of depthwise tf32", "initcheck of wide half"]
    names = [run.name for run in sanitize._wanted(asked)]
    assert names[:2] == ["racecheck of depthwise half 0.0", "racecheck of depthwise tf32 0.0"]
    assert names[-1] == "initcheck of wide half 0.0"
    assert all(name.startswith("memcheck") and name.endswith("in graphs") for name in names[2:-1])


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
