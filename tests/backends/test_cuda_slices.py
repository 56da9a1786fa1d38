"""Channels that 1x1 convolutions take out of maps and join (backends/cuda/slices.py). Needs no GPU."""

from __future__ import annotations

import pytest
import torch
from blocks import STEPS, Shuffled, steps_of
from on_cpu import GXX, without_a_gpu
from oracle import assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.cuda import slices
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import head_of

CARRIES = slices.carries
pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """As on a GPU whose kernels add maps, in half; here torch computes such a sum, whole, in float32."""
    without_a_gpu(monkeypatch)
    monkeypatch.setattr(slices, "adds_maps", lambda first, second, **_: True)
    monkeypatch.setattr(slices, "carries", lambda node: True)


def convert(network: nn.Module, frame: torch.Tensor, **options) -> deltaconvert.DeltaModel:
    return deltaconvert.convert(network, frame, backend="cuda", **options)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_equal_to_the_reference(turned, threshold):
    torch.manual_seed(0)
    network = Shuffled(turned=turned).eval()
    video = scripted_video((2, 3, 21, 26), torch.float32)[:5]
    options = {"threshold": {"input": threshold}}
    ours = convert(network, video[0], **options)
    theirs = deltaconvert.convert(network, video[0], backend="reference", **options)
    assert steps_of(ours) == STEPS
    for t, frame in enumerate(video):
        assert_close(ours(frame), theirs(frame), f"frame {t}")
        masks, expected = ours.masks(), theirs.masks()
        for path in ("beside.0", "first.0", "first.1", "second.0", "second.1", "second.2"):
            assert torch.equal(masks[path], expected[path]), (t, path)
    last = ours(video[-1])
    ours.reset()
    if threshold == 0:
        assert_same_bits(ours(video[-1]), last, "after a reset")


def test_what_passes_by_is_not_touched():
    network = Shuffled().eval()
    frame = torch.randn(1, 3, 21, 26)
    model = convert(network, frame)
    before = network.act(network.stem(frame))
    joined = torch.cat([network.act(network.beside(before)), network.branch(network.first, before)], 1)
    ours = model(frame)
    first = next(edge for name, edge in model._program.edges.items() if edge.values.shape == joined.shape)
    assert_same_bits(ours[:, :16], first.values[:, 0::2].contiguous(), "the half that passes by")


def test_thresholds_and_narrow_changes_stay_where_they_are():
    network = Shuffled().eval()
    frame = torch.randn(1, 3, 21, 26)
    rules = {"activation": 0.0, "first.2": 0.1, "second.0": "0.1 narrow"}
    assert steps_of(convert(network, frame, threshold=rules)).count("ConvSum") == 1
    assert steps_of(convert(network, frame, threshold={"activation": "0.0 narrow"})).count("ConvSum") == 0


def test_not_in_numbers_that_round_what_passes_by(monkeypatch):
    monkeypatch.setattr(slices, "carries", CARRIES)
    model = convert(Shuffled().eval(), torch.randn(1, 3, 21, 26))
    assert "ConvSum" not in steps_of(model)
    assert steps_of(model).count("Channels") == 2


def test_values_below_zero_do_not_pass_through_a_relu():
    """Channels of a map that may be negative are copied, where the other half ends in a relu."""

    class Below(Shuffled):
        def forward(self, x):
            x = self.stem(x)
            return torch.cat([x[:, 0::2], self.second[0](x[:, 1::2].repeat(1, 2, 1, 1)).relu()], 1)

    network = Below().eval()
    frame = torch.randn(1, 3, 21, 26)
    model = convert(network, frame)
    assert "ConvSum" not in steps_of(model)
    assert_close(model(frame), network(frame), "a relu")


def test_names_and_work_of_all():
    network = Shuffled().eval()
    frame = torch.randn(1, 3, 21, 26)
    ours, apart = convert(network, frame), deltaconvert.convert(network, frame, backend="reference")
    assert sum(row.macs for row in ours.explain().rows) == sum(row.macs for row in apart.explain().rows)
    assert isinstance(head_of(ours._program.operators[-1].operator), ConvSum)
