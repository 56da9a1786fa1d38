"""benchmarks/coverage.py and zoos.py: a sample of the public networks; all of them where slow tests run."""

import json
import math
import time
import types

import pytest
import torch
from torch import nn

from benchmarks import coverage, zoos
from benchmarks.coverage_page import matches, page

PATIENCE = 120.0  # seconds that a task of a moment may take, on a machine that others use too
SAMPLE = {
    "torchvision.squeezenet1_1": "symbolic",
    "timm.test_resnet": "symbolic",
    "timm.test_efficientnet_gn": "symbolic",
    "timm.tf_mobilenetv3_small_minimal_100": "symbolic",
}
DETECTORS = ("rcnn", "ssd", "retinanet", "fcos", "keypoint")


def build_of(name):
    package, _, network = name.partition(".")
    pytest.importorskip("torch" if package == "torchvision" else package, reason=f"needs {package}")
    try:
        models = zoos.torchvision().models
    except ImportError:
        pytest.skip("needs torchvision")
    if package == "timm":
        import timm

        return lambda: timm.create_model(network, pretrained=False)
    options = {"weights_backbone": None} if any(part in network for part in DETECTORS) else {}
    return lambda: models.get_model(network, weights=None, **options)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample(name):
    row = coverage.examine(build_of(name), ["reference"])
    assert matches(row) and row["way"] == SAMPLE[name] and row["share"] > 0.95, row


RESULTS = json.loads(coverage.RESULTS.read_text())["networks"] if coverage.RESULTS.exists() else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, row in RESULTS.items() if matches(row)])
def test_what_matched_still_does(name):
    builds = dict(zoos.networks([name]))
    if name not in builds:
        pytest.skip(f"needs {name.partition('.')[0]}")
    assert matches(coverage.examine(builds[name], ["reference"]))


def test_differences_are_seen():
    a = {"x": [torch.ones(2, 3), torch.zeros(0, 4)], "n": 3}
    assert coverage.difference(a, a) == 0
    assert coverage.difference({"x": [torch.ones(2, 3) * 1.5, torch.zeros(0, 4)], "n": 3}, a) == 0.5
    assert coverage.difference({"x": [torch.ones(2, 2), torch.zeros(0, 4)], "n": 3}, a) == math.inf
    assert coverage.difference({"x": [torch.ones(2, 3)], "n": 3}, a) == math.inf
    nan = {"x": [torch.full((2, 3), math.nan), torch.zeros(0, 4)], "n": 3}
    assert coverage.difference(nan, a) == math.inf
    assert coverage.finite(nan) == 0


def test_a_network_that_takes_too_much_is_an_error():
    def forever():
        while True:
            pass

    def fails():
        raise ValueError("why")

    rows = dict(coverage.apart({"good": lambda: {"share": 1}, "bad": fails}, 2, PATIENCE, 8))
    assert rows["good"]["share"] == 1 and rows["bad"]["error"] == "ValueError: why"
    rows = dict(coverage.apart({"slow": forever}, 2, 0.1, 8))
    assert "killed" in rows["slow"]["error"]


def test_what_is_not_done_in_time_is_left_for_the_next_run(monkeypatch, tmp_path):
    """The clock stands still until the second task runs."""
    running, now = tmp_path / "running", time.time()
    clock = types.SimpleNamespace(time=lambda: now + PATIENCE * running.exists(), sleep=time.sleep)
    monkeypatch.setattr(coverage, "time", clock)

    def forever():
        running.touch()
        time.sleep(10 * PATIENCE)

    tasks = {"fast": lambda: {"share": 1}, "forever": forever, "never begun": lambda: {"share": 1}}
    assert [name for name, _ in coverage.apart(tasks, 1, 2 * PATIENCE, 8, stop=1.0)] == ["fast"]
    assert running.exists()


def test_rounding_that_a_network_amplifies_is_judged_in_float64():
    row = {"finite": 1.0, "difference": 1e-3}
    assert not matches(row)
    assert matches(row | {"difference_double": 1e-12}) and not matches(row | {"difference_double": 1e-6})
    assert not matches({"finite": 1.0, "difference": 0.0, "difference_cpu": 1e-3})
    assert not matches({"finite": 0.0, "difference": 0.0})

    class Sharp(nn.Module):
        """A folded norm differs in the last bits; this makes them the first ones."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return (self.norm(self.conv(x)) * 1e4).sin()

    row = coverage.examine(Sharp, ["reference"])
    assert row["difference"] > 1e-5 and matches(row), row


def test_the_page_is_current():
    """docs/coverage.md is what coverage.json says."""
    if not RESULTS:
        pytest.skip("no results yet")
    assert coverage.DOCS.read_text() == page(json.loads(coverage.RESULTS.read_text()))
