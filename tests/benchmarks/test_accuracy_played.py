"""benchmarks/accuracy_check.py, accuracy_time.py and what gpu_accuracy.py shares with it, on a processor."""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import accuracy_answers, accuracy_check, accuracy_time
from benchmarks.curves import host
from benchmarks.curves.run import Run, played_here
from benchmarks.tasks.labels import error_among_the_first, same_class
from benchmarks.tasks.task import Task
from deltaconvert.calibration.setting import Setting


def classifier() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def picture(number: int) -> torch.Tensor:
    """A square that walks down over still ground, and a little noise."""
    ground, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + number)
    frame = torch.randint(10, 200, (24, 32, 3), generator=ground)
    frame += torch.randint(-2, 3, frame.shape, generator=noise)
    frame[number : number + 4, 8:12] = 255
    return frame.to(torch.uint8)


@pytest.fixture
def task():
    return Task(
        name="toy",
        network=classifier(),
        frames=lambda numbers: map(picture, numbers),
        calibration=range(5),
        test=range(8, 16),
        prepare=lambda x: x / 255,
        decode=lambda output: output.argmax().cpu(),
        resized=lambda output, size: output.argmax().cpu(),
        score=same_class,
        truth="frames with the dense network's class",
        accepted=0.005,
        features=lambda output: output.float(),
        streams=1,
        spent=0.1,
        metric=error_among_the_first,
    )


@pytest.fixture
def options(tmp_path):
    return played_here(argparse.Namespace(out=tmp_path))


@torch.no_grad()
def test_on_a_processor_a_setting_ends_where_it_cannot_be_chosen(task, options):
    """What has no less work than is known is not played to its end, nor again; what has counts as on the reference."""
    run = Run(task, options, math.inf)
    trials = run.trials()
    run.look_at_dense()
    everywhere = Setting(tuple(1.0 for _ in trials.sites))
    settings = {("ours", 0): everywhere.times(1e-6), ("ours", 1): everywhere.times(0.2)}
    assert host.play(run, trials, settings)
    rows = run.kept["rows"][1:]
    assert rows[0]["work"] > rows[1]["work"] > 0 and rows[0]["loss"] == 0
    reference = [work for _, (work,) in trials.play([settings["ours", 1]], [[x] for x in run.test])][1:]
    assert rows[1]["work"] == pytest.approx(sum(reference) / len(reference), rel=1e-3)

    again = {("ours", 2): settings["ours", 0], ("ours", 3): settings["ours", 1]}
    assert host.play(run, trials, again, beaten=(rows[0]["work"] + rows[1]["work"]) / 2)
    (beaten,) = run.kept["beaten"]
    assert beaten["strength"] == 2 and 1 < beaten["frames"] < len(run.test)
    assert run.kept["rows"][-1]["strength"] == 3 and json.loads(run.out.read_text())["beaten"] == [beaten]
    run.until = 0.0
    assert host.play(run, trials, settings | again)  # all known
    assert not host.play(run, trials, {("ours", 4): everywhere})


def test_a_classifiers_answers_are_told_by_their_changes():
    outputs = [torch.tensor([[1.0, 0.0, high]]) for high in (0.0, 0.0, 3.0, 0.0)]
    facts = accuracy_answers.told(outputs)
    assert facts["classes"] == {0: 3, 2: 1} and facts["changes"] == 2
    (first, second, _) = outputs[0].softmax(1)[0].tolist()
    assert facts["ahead"] == pytest.approx([first - second] * 2, abs=1e-4)
    # Two late, two wrong where nothing changes.
    dense, ours = [0] * 20 + [1] * 20, [0] * 22 + [1] * 16 + [2] * 2
    expected = {"frames": 40, "near a change": 11, "differ": 4, "differ near a change": 2}
    assert accuracy_answers.differing(ours, dense) == expected


def test_what_a_setting_has_to_beat():
    """The least work at the lowest level, of both ways' candidates; until one is that good, nothing is beaten."""
    rows = [{"way": "paper", "work": 0.5, "loss": 0.0, "accepted": 0.004}]
    rows.append({"way": "ours", "work": 0.3, "loss": 0.01, "accepted": 0.004})
    assert accuracy_check.to_beat(rows) == 0.5
    assert accuracy_check.to_beat(rows[1:]) == math.inf


@torch.no_grad()
def test_the_check_is_played_and_goes_on(task, options, monkeypatch):
    """Candidates play the frames between those of the calibration, what is chosen the test's, and nothing twice."""
    task.calibration = [0, 1, 6, 7]
    found = {f"{way} 1": Setting((0.1,) * 3).to_json() for way in ("ours", "paper")}
    (options.out / "toy.json").write_text(json.dumps({"rows": [], "settings": found}))
    monkeypatch.setitem(accuracy_check.TASKS, "toy", lambda calibration, frames: task)
    options = argparse.Namespace(
        **vars(options), task="toy", calibration=4, frames=8, choose=False, seconds=1e9
    )
    accuracy_check.check(options)
    held = json.loads((options.out / "checked" / "toy.json").read_text())
    played = [(row["way"], row["strength"]) for row in [*held["rows"][1:], *held.get("beaten", [])]]
    expected = len(accuracy_check.FACTORS)
    assert played.count(("paper", 0)) == 1 and sum(way == "paper" for way, _ in played) == expected
    assert {row["frames"] for row in held["rows"]} == {4}
    kept = json.loads((options.out / "toy.json").read_text())
    chosen = [row for row in kept["rows"] if "checked" in row["way"]]
    assert {row["way"] for row in chosen} == {"ours checked", "paper checked"}
    assert {row["frames"] for row in chosen} == {8}
    for options.choose in (False, True):
        accuracy_check.check(options)
        assert json.loads((options.out / "checked" / "toy.json").read_text())["rows"] == held["rows"]


@torch.no_grad()
def test_thresholds_by_the_clock_are_found_and_written(task, options, monkeypatch):
    """The whole of accuracy_time.py but its clock, which here counts thresholds: what is left out is quicker."""

    class Clock:
        def __init__(self, task, options):
            pass

        def __call__(self, thresholds):
            placed = sum(rule not in (0, "0%") for rule in thresholds.rules.values())
            return accuracy_time.Seen(1.0 + placed, 0.1)

    monkeypatch.setattr(accuracy_time, "Clock", Clock)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a processor")
    known = {"rows": [], "settings": {"ours 1": Setting((0.1,) * 3).to_json()}}
    (options.out / "toy.json").write_text(json.dumps(known))
    options = argparse.Namespace(**vars(options), budgets="1", search_seconds=1e9, rounds=1)
    accuracy_time.of_task(task, options)
    facts = json.loads((options.out / "toy_time.json").read_text())
    assert facts["timed"] and facts["budget"] > 0 and facts["gpu"] == "a processor"
    (row,) = facts["rows"]
    assert row["way"] == "by time" and row["frames"] == 8
    best = json.loads((options.out / "toy_best.json").read_text())
    assert (best["found"]["loss"] <= task.accepted) and best["found"] == row


def test_the_frames_that_settle_are_neither_timed_nor_counted(monkeypatch):
    """accuracy_time.py and gpu_accuracy.py time by one function: behind `first` frames, whose work does not count."""
    from benchmarks import gpu_accuracy

    class Delta:
        """Of a frame, whose value is its work, it does so many of ten multiply-accumulates."""

        def __init__(self):
            self.done, self.lent = 0, []

        def __call__(self, frame):
            self.done += int(frame)

        def lend(self, frame):
            self.lent.append(int(frame))
            self(frame)

        def frame_buffers(self):
            return [torch.zeros(())]

        def stats(self):
            return SimpleNamespace(layers=[SimpleNamespace(total_macs_done=self.done)], macs_dense=10)

    def timed(run, frames, place):
        for frame in frames:
            run(place(frame))
        return [float(frame) for frame in frames], 0.0, None

    monkeypatch.setattr(gpu_accuracy, "timed", timed)
    delta = Delta()
    times, work = gpu_accuracy.played(delta, [torch.tensor(float(n)) for n in (10, 9, 3, 1, 2)], first=2)
    assert times == [3.0, 1.0, 2.0] and delta.lent == [3, 1, 2] and work == pytest.approx(0.2)


def test_steps_are_told_by_kernel_and_by_layer(monkeypatch):
    from benchmarks import gpu_accuracy
    from benchmarks.gpu_timeline import Event, Launch

    events = [Event("conv(float*)", 0, 2), Event("rows", 2, 3), Event("conv(float*)", 3, 6)]
    monkeypatch.setattr(gpu_accuracy, "timeline", lambda delta, frames: events)
    launches = [Launch("first", "conv"), Launch("second", "rows"), Launch("second", "conv")]
    assert gpu_accuracy.steps_of(None, [], launches) == {
        "kernels_us": {"conv": {"launches": 2, "us": 5}, "rows": {"launches": 1, "us": 1}},
        "layers_us": {"first": 2, "second": 4},
    }
