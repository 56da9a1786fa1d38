"""benchmarks/accuracy_clock.py: rows of loss and work become rows of loss and time."""

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import accuracy_clock, engines
from benchmarks.accuracy_page import LOSES_MORE, NOT_QUICKER, NOT_TIMED, soonest, table, tasks_of, time_table
from benchmarks.curves import points
from benchmarks.curves.run import Run
from deltaconvert.calibration.setting import Setting
from deltaconvert.gate import Gate
from deltaconvert.thresholds import Thresholds

ROOT = Path(__file__).parents[2]


class Clock:
    """10 ms dense, and less on smaller frames; 4 converted."""

    def __init__(self, run, options, known):
        self.timed = []

    def dense(self, scale=1.0):
        return {"torch": 10 * scale**2, "slow": 20.0}

    def converted(self, thresholds):
        self.timed.append(thresholds)
        return {"ms": 4.0}

    def facts(self):
        return {"shape": [1, 3, 8, 8]}


def row(way, strength, work, loss=0.0):
    return {"way": way, "strength": strength, "work": work, "loss": loss, "accepted": 0.005}


@pytest.fixture
def run(monkeypatch):
    rows = [row("dense", 1.0, 1.0), row("ours", 0.5, 0.3), row("skipped frames", 2, 0.5)]
    rows += [row("frame gate", 0.01, 0.8), row("lower resolution", 0.5, 0.25)]
    monkeypatch.setattr(accuracy_clock, "points", lambda run, furthest: [(rows[1], Thresholds.of(0.1))])
    return SimpleNamespace(kept={"rows": rows}, task=SimpleNamespace(name="pets"))


OPTIONS = argparse.Namespace(furthest=8.0)


def test_every_way_takes_time(run):
    """What has no thresholds is the best dense network: on fewer frames, or on smaller ones."""
    *_, facts = accuracy_clock.curve(run, Clock, OPTIONS, [])
    ms = {accuracy_clock.place(row): row["ms"] for row in facts["rows"]}
    assert ms == {
        "ours 0.5": 4.0,
        "skipped frames 2": 5.0,
        "frame gate 0.01": 8.0,
        "lower resolution 0.5": 2.5,
    }
    assert facts["dense_ms"] == {"torch": 10.0, "slow": 20.0} and facts["shape"] == [1, 3, 8, 8]
    assert all(row["dense_ms"] == 10.0 and row["accepted"] == 0.005 for row in facts["rows"])


def test_a_second_run_goes_on(run):
    known = [row("ours", 0.5, 0.3) | {"ms": 3.0, "dense_ms": 10.0}]
    *_, facts = accuracy_clock.curve(run, Clock, OPTIONS, known)
    assert [row["ms"] for row in facts["rows"]] == [3.0, 5.0, 8.0, 2.5]


def test_settings_of_rows():
    """A budget's own setting, a factor of a curve that was scaled as a whole, or none."""
    one, other = Setting((0.1, 0.2), gate=Gate(dilate=2)), Setting((0.4, 0.0))
    kept = {"settings": {"ours 0.5": one.to_json()}, "scaled": {"ours 0.5": other.to_json()}}
    run = SimpleNamespace(kept=kept)
    assert Run.setting(run, row("ours", 0.5, 0.3)) == one
    assert Run.setting(run, row("ours 0.5", 2.0, 0.3)) == other.times(2.0)
    assert Run.setting(run, row("paper", 0.5, 0.3)) is None


def test_thresholds_at_another_height():
    known = Thresholds({"input": "40%", "input_0": "0.2 narrow", "conv": 0.5}, Gate(dilate=2))
    found = points.scaled(known, 0.5)
    assert (
        found.rules == {"input": "20.0%", "input_0": "0.1 narrow", "conv": 0.25} and found.gate == known.gate
    )


@pytest.mark.parametrize("task", ["pets", "highway", "juggle", "upscale"])
def test_heights_are_of_the_thresholds_by_time(task):
    """strength is the input's share, so that it goes with the threshold."""
    (first, known), *others = points.by_time(task)
    assert first["loss"] <= first["accepted"] and {row["way"] for row, _ in [(first, known), *others]} == {
        "by time"
    }
    share = float(known.rules["input"].rstrip("%")) / 100
    assert share == pytest.approx(first["strength"], rel=1e-3)
    for other, thresholds in others:
        assert float(thresholds.rules["input"].rstrip("%")) / 100 == pytest.approx(other["strength"])


def test_the_soonest_within_the_accepted_loss():
    """Of points that were timed; one that is lucky counts with its neighbours, and a slower one with less work not."""
    losses = {0.9: 0.0, 0.5: 0.004, 0.4: 0.004, 0.3: 0.02, 0.1: 0.0}
    times = {0.9: 9.0, 0.5: 3.0, 0.4: 5.0, 0.3: 2.0, 0.1: 1.0}
    rows = [row("ours", w, w, loss) | {"ms": times[w], "dense_ms": 8.0} for w, loss in losses.items()]
    rows.append(row("paper", 1.0, 0.3, 0.5) | {"ms": 1.0, "dense_ms": 8.0})
    rows.append(row("one threshold", 0.1, 0.9) | {"ms": 8.5, "dense_ms": 8.0})
    assert soonest(rows, "ours") == 3.0 and soonest(rows, "paper") == math.inf
    assert math.isnan(soonest(rows, "by time"))
    cells = [cell.strip() for cell in time_table({"pets": rows}).splitlines()[-1].split("|")]
    assert (
        cells[1:8] == ["pets", "8 ms", NOT_TIMED, "3", LOSES_MORE, NOT_QUICKER, NOT_TIMED]
        and cells[-2] == "2.7"
    )


def test_engines_take_networks_of_several_outputs():
    """As PoseNet is: the first output is held against torch's."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            return self.first(x), self.second(x)

    import deltaconvert

    model, frame = Two().eval(), torch.rand(1, 3, 8, 8)
    network = engines.Network(model, deltaconvert.convert(model, frame).graph, frame, 1)
    found = engines.prepare(network, ["torch channels_last"])
    assert not found.skipped
    with torch.no_grad():
        torch.testing.assert_close(found.ready["torch channels_last"](frame)(), model(frame)[0])


@pytest.mark.parametrize(
    ("folder", "made"),
    [("accuracy", table), ("accuracy_clock/gpu", time_table), ("accuracy_clock/cpu", time_table)],
)
def test_the_page_has_the_tables_of_its_records(folder, made):
    assert made(tasks_of(ROOT / "benchmarks/results" / folder)) in (ROOT / "docs/accuracy.md").read_text()
