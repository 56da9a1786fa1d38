"""Depthwise convolutions in one launch (backends/cuda/siblings.py). Needs no GPU."""

from __future__ import annotations

import pytest
import torch
from blocks import Branches, depthwise
from on_cpu import GXX, without_a_gpu
from oracle import assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.cuda import Backend

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    without_a_gpu(monkeypatch)


class Halves(nn.Module):
    """A depthwise convolution before a 1x1 one, and one behind it: their maps differ, and what is listed does not."""

    def __init__(self):
        super().__init__()
        self.near, self.far, self.last = depthwise(3, 3, 2), depthwise(3, 3, 2), depthwise(3, 3, 1)
        self.stem, self.between = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.end = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        beside = self.near(x).relu()
        # Both are read elsewhere, too: else the sum would join one of them (join_elementwise).
        far = self.far(self.between(x).relu()).relu()
        return self.last(beside + far), self.end(beside), self.end(far)


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The kernels of a frame, by name."""
    names: list[str] = []
    launch = Backend.launch

    def noted(backend, kernel, *args, **options):
        names.append(kernel.name)
        launch(backend, kernel, *args, **options)

    monkeypatch.setattr(Backend, "launch", noted)
    return names


def check(network: nn.Module, launched: list[str], launches: int) -> None:
    """The reference's outputs and masks, by so many launches for depthwise convolutions."""
    torch.manual_seed(0)
    video = scripted_video((2, 3, 40, 50), torch.float32)[:5]
    ours = deltaconvert.convert(network.eval(), video[0], backend="cuda")
    theirs = deltaconvert.convert(network, video[0], backend="reference")
    for t, frame in enumerate(video):
        assert_close(ours(frame), theirs(frame), f"frame {t}")
        masks = theirs.masks()
        for path, mask in ours.masks().items():
            assert torch.equal(mask, masks[path]), (t, path)
    last = ours(video[-1])
    ours.reset()
    launched.clear()
    assert_same_bits(ours(video[-1]), last, "after a reset")
    assert launched.count("depthwise") == launches


def test_branches(launched):
    """The first convolution of each, the second of two, and the third of one."""
    check(Branches(), launched, 3)


def test_maps_that_differ(launched):
    check(Halves(), launched, 2)


def test_not_where_one_waits_for_the_other(launched):
    check(nn.Sequential(nn.Conv2d(3, 8, 1), depthwise(8, 3), depthwise(8, 3)), launched, 2)


def test_not_where_one_compares():
    network = Branches()
    frame = torch.randn(2, 3, 40, 50)
    rules = {"activation": 0.0, "chains.0.0": 0.1}
    model = deltaconvert.convert(network.eval(), frame, backend="cuda", threshold=rules)
    notes = {n.name: n.meta["cuda"] for n in model._program.plan.graph.graph.nodes if "cuda" in n.meta}
    assert sorted(note["together"][1] for note in notes.values() if "together" in note) == [2, 2, 2, 2]


def test_alone_where_the_pixels_turn_out_to_differ(launched):
    """Convolutions of one form on maps that change in other places."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.far, self.near = nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 1)
            self.first, self.second = depthwise(3, 3), depthwise(3, 3)

        def forward(self, x):
            return self.first(self.far(x)), self.second(self.near(x))

    check(Apart(), launched, 2)
