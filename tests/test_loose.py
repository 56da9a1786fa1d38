"""deltaconvert/passes/loose.py: sizes that follow from values, which change from frame to frame."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_close, leaves, scripted_video
from torch import nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert.errors import ExportError

SHAPE = (1, 3, 13, 11)


class Network(nn.Module):
    """Applies `made` to a convolution's map."""

    def __init__(self, made):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.made = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), made

    def forward(self, x):
        return self.made(self, self.first(x))


def picked(y):
    """The pixels of a map that are bright enough, as a map of one column."""
    return y.permute(0, 2, 3, 1)[y[:, 0] > 0].t().reshape(1, y.shape[1], -1, 1)


@torch.fx.wrap
def found(y):
    """Boxes, as a network's own code finds them."""
    return (y[0, 0] > 0).nonzero().to(y.dtype)


COUNTS = {
    "nonzero": lambda self, y: y * (y > 0.3).nonzero().shape[0],
    "nonzero as a tuple": lambda self, y: y * torch.nonzero(y > 0.3, as_tuple=True)[1].size(0),
    "where": lambda self, y: y * torch.where(y > 0.3)[0].shape[0],
    "mask": lambda self, y: y * y[y > 0.3].numel(),
    "masked_select": lambda self, y: y * len(y.masked_select(y > 0.3).view(-1)),
    "unique": lambda self, y: y * y.round().unique().shape[0],
    "ones": lambda self, y: y * torch.ones_like(y[y > 0.3]).sum(),
    "in place of a size": lambda self, y: y * y.new_ones((y > 0.3).nonzero().shape[0]).sum(),
    "item": lambda self, y: (y, y[:, :, : (y > 0.3).sum().clamp(1, 9).item()].mean(2)),
    "a value": lambda self, y: self.last(y * y.max().item()),
    "two of them": lambda self, y: (y * y[y > 0.3].shape[0], self.last(y) * y[y < 0].shape[0]),
    "number out": lambda self, y: (y, (y > 0.3).nonzero().shape[0]),
    "own code": lambda self, y: y * found(y).shape[0],
}
MAPS = {
    "a map": lambda self, y: self.last(picked(y)).relu(),
    "beside a map": lambda self, y: (self.last(y), self.last(picked(y)) + 1),
    "summed up": lambda self, y: y + self.last(picked(y)).mean(),
    "boxes": lambda self, y: self.last(found(y).t()[None, :, :, None].repeat(1, 2, 1, 1)),
}


def numbers(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if not isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", [*COUNTS, *MAPS])
def test_they_are_those_of_the_frame(backend, name):
    network = Network({**COUNTS, **MAPS}[name]).eval().double()
    frames = scripted_video(SHAPE)
    model = deltaconvert.convert(network, frames[0], backend=backend)
    assert not [row for row in model.explain().rows if row.path == "first" and row.kind != "delta"]
    for t, frame in enumerate(frames):
        with torch.no_grad():
            expected, got = network(frame), model(frame)
        assert numbers(got) == numbers(expected)
        for ours, theirs in zip(leaves(got), leaves(expected), strict=True):
            assert_close(ours, theirs, f"frame {t}")


def test_what_reads_them_says_why_it_is_dense():
    network, frame = Network(MAPS["a map"]).eval(), torch.rand(SHAPE)
    rows = {row.path: row for row in deltaconvert.convert(network, frame).explain().rows}
    assert rows["last"].reason == "the size of its input reshape follows from values"
    pixels = int((network.first(frame)[:, 0] > 0).sum())
    assert rows["last"].macs == 4 * 2 * pixels  # for the example's frame
    assert "end the network before it" in rows["last"].way_out


def test_what_comes_to_one_size_again_runs_as_deltas(backend):
    """A gate by the mean of what was picked."""

    def made(self, y):
        return self.last(y * y[y > 0.3].mean().expand(1, 4, 1, 1).sigmoid()).relu()

    network, frames = Network(made).eval().double(), scripted_video(SHAPE)
    model = deltaconvert.convert(network, frames[0], backend=backend)
    assert model.explain().delta_share == 1
    for t, frame in enumerate(frames):
        with torch.no_grad():
            assert_close(model(frame), network(frame), f"frame {t}")


REPEATS = {
    "sizes": lambda self, y: self.last(y * y[:, :, :1].repeat_interleave(y.shape[2] // y.shape[0], dim=2)),
    "weights": lambda self, y: self.last(y.repeat_interleave(self.counts, 3)),
    "a length": lambda self, y: self.last(y.repeat_interleave(y[0, 0, 0].argsort(), 3, output_size=55)),
}


@pytest.mark.parametrize("name", REPEATS)
def test_repeats_that_no_value_changes_have_a_size(name):
    network = Network(REPEATS[name]).eval()
    network.counts = torch.arange(SHAPE[3])
    rows = deltaconvert.convert(network, torch.rand(SHAPE), backend="reference").explain().rows
    assert {row.path: row.kind for row in rows}["last"] == "delta"


def test_a_compiled_graph_asks_for_no_size():
    network, frames = Network(MAPS["a map"]).eval(), scripted_video(SHAPE, torch.float32)
    model = torch.compile(deltaconvert.convert(network, frames[0], backend="reference"), backend="eager")
    for t, frame in enumerate(frames[:5]):
        with torch.no_grad():
            assert_close(model(frame), network(frame), f"frame {t}")


@pytest.mark.parametrize("name", ["a map", "number out"])
def test_onnx_cannot_return_them(name, tmp_path):
    model = deltaconvert.convert(Network(MAPS.get(name) or COUNTS[name]).eval(), torch.rand(SHAPE))
    with pytest.raises(ExportError, match=r"follows from values|frame of zeros"):
        deltaconvert.export_onnx(model, tmp_path / "net.onnx")
