"""NaN and infinity in frames are counted where they are stored, with and without a gate, and said where one looks."""

from __future__ import annotations

import math

import pytest
import torch
from gated import NONFINITE, Input, check_nonfinite, convert
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu.native import loops
from deltaconvert.streams import StreamPool


@pytest.mark.parametrize(("gate", "size", "dtype", "threshold"), NONFINITE, ids=str)
def test_what_is_stored_is_counted(backend, gate, size, dtype, threshold):
    check_nonfinite(backend, gate, size, dtype, threshold)


@pytest.mark.parametrize(("gate", "size", "dtype", "threshold"), NONFINITE, ids=str)
def test_without_loops(monkeypatch, gate, size, dtype, threshold):
    monkeypatch.setattr(loops, "FOUND", False)
    check_nonfinite("cpu", gate, size, dtype, threshold)


@pytest.mark.parametrize("found", [True, False])
def test_of_a_frame_in_which_nearly_all_changes(monkeypatch, found):
    """Then pixels are not listed."""
    if not found:
        monkeypatch.setattr(loops, "FOUND", False)
    elif not loops.FOUND:
        pytest.skip("numba is not installed")
    frame = torch.rand(2, 3, 90, 100)
    frame[1, 0, 3:5] = math.inf
    model = convert(frame, None, backend="cpu")
    model(frame)
    assert model.nonfinite() == [0, 200]


def test_they_are_said_with_the_way_out(backend):
    """A frame's are not those of what a dense part makes; both are told apart by their path."""

    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    frame = torch.rand(1, 3, 6, 7) + 0.1
    network = nn.Sequential(Input(), Log(), nn.Conv2d(3, 2, 1)).to(frame.device).eval()
    model = deltaconvert.convert(network, frame, backend=backend, keep_dense=["1.log"])
    model(frame)
    assert model.stats().nonfinite == {} == model.stats().to_json()["nonfinite"]
    assert "NaN" not in str(model.stats())
    frame[0, 1, 2, 3] = 0.0  # its logarithm is infinite
    model(frame)
    (path,) = model.stats().nonfinite
    assert path != "input_0" and model.nonfinite() == [0]
    frame[0, :, 4, 3:5] = math.nan
    model(frame)
    stats = model.stats()
    assert stats.nonfinite == {"input_0": 2, path: 3} == stats.to_json()["nonfinite"]
    assert "input_0: 2 pixels came in with NaN or infinity; in a frame, the gate's nonfinite" in str(stats)
    assert f"{path}: 3 pixels" in str(stats)


def test_bytes_are_finite(backend):
    frame = torch.randint(0, 256, (2, 3, 9, 20), dtype=torch.uint8)

    class Bytes(Input):
        def forward(self, x):
            return self.conv(x.float())

    model = deltaconvert.convert(Bytes().to(frame.device).eval(), frame, backend=backend)
    model(frame)
    assert model.stats().nonfinite == {}


def test_each_stream_of_a_pool_has_its_own(backend):
    """A stream that takes the place of another begins at 0, and those in a pool that grows keep theirs."""
    frame = torch.rand(1, 3, 8, 9)
    broken = frame.clone()
    broken[0, 2, 1, 1:4] = math.nan
    pool = StreamPool(convert(frame, None, backend=backend), streams=2)

    def step(**frames):
        for stream, frame in frames.items():
            pool.put(stream, frame)
        pool.step()
        return {stream: stats.nonfinite for stream, stats in pool.stats().items()}

    pool.join("a")
    pool.join("b")
    assert step(a=broken, b=frame) == {"a": 3, "b": 0}
    pool.drop("a")
    pool.join("c")
    assert step(b=broken, c=frame) == {"b": 3, "c": 0}
    pool.join("d")
    assert pool.capacity == 4
    seen = step(b=broken, c=broken, d=frame)
    assert seen["b"] >= 3 and seen["c"] == 3 and seen["d"] == 0
    before, _ = seen["b"], pool.reset("b")
    assert step(b=broken)["b"] == before + 3
