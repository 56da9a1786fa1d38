"""Networks that go by the number of dimensions in Python are one graph for all sizes of frames."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError

SHAPE = (2, 3, 13, 11)


class ByRank(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.step = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)
        self.norm, self.last = nn.LayerNorm(6), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x):
        assert x.ndim == 4 and len(x.shape) == 4 and len(x.size()) == 4
        if x.dim() == 3:
            x = x[None]
        seen = self.embed(x)
        hidden = x.new_zeros(x.shape[0], 6, *x.shape[2:])
        for _ in range(2):
            hidden = self.step(torch.cat([hidden, seen], 1)).tanh() + hidden
        n, c, *rest = hidden.shape
        tokens = self.norm(hidden.reshape(n, c, -1).transpose(1, 2)).transpose(1, 2)
        result = self.last(tokens.reshape(n, c, *rest))
        larger = F.interpolate(result, size=tuple(2 * side for side in x.shape[-2:]))
        return larger, result.mean(dim=list(range(2, result.ndimension())))


def test_one_graph_for_all_sizes(backend, tmp_path):
    dense = ByRank().eval().double()
    model = deltaconvert.convert(dense, scripted_video(SHAPE)[0], backend=backend)
    assert model.info["capture"] == "traced symbolically"
    assert {row.operator for row in model.explain().islands} == {"Rearrange"}
    for shape in (SHAPE, (1, 3, 9, 14)):
        for frame in scripted_video(shape)[:5]:
            with torch.no_grad():
                for ours, theirs in zip(model(frame), dense(frame), strict=True):
                    assert_close(ours, theirs)
    model.save(tmp_path / "net.delta")
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)
    model.reset()
    for ours, theirs in zip(again(frame), model(frame), strict=True):
        assert_same_bits(ours, theirs, "from the file")


class Channels(nn.Module):
    """Asserts channels, and goes by them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        n, c, _, w = x.shape
        assert c == 3 and x.size(1) <= 3, f"{c} channels"
        y = self.first(x)
        if y.shape[1] % 2:
            y = y[:, 1:]
        return self.last(y) * (n * w)


class Sizes(Channels):
    """Goes by how large its maps are."""

    def forward(self, x):
        y = self.first(x)
        if y.shape[2] > 8:
            y = F.avg_pool2d(y, 2)
        rows = x.shape[2]
        y = F.pad(y, (0, 0, 0, int(rows % 2)))
        return sum(self.last(part) for part in list(y.chunk(1, 1)))


class Counts(Channels):
    def forward(self, x):
        return self.last(self.first(x)) * int(x.shape[0])


def test_channels_are_the_same_in_every_frame(backend, tmp_path):
    dense = Channels().eval().double()
    model = deltaconvert.convert(dense, scripted_video(SHAPE)[0], backend=backend)
    assert model.info["capture"] == "traced symbolically" and not model.explain().islands
    for frame in (*scripted_video(SHAPE)[:3], *scripted_video((1, 3, 7, 12))[:3]):
        with torch.no_grad():
            assert_close(model(frame), dense(frame))
    model.save(tmp_path / "net.delta")
    deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)


def test_a_branch_on_sizes_holds_for_all_that_go_the_same_way(backend, tmp_path):
    dense = Sizes().eval().double()
    frames = scripted_video(SHAPE)[:3]
    model = deltaconvert.convert(dense, frames[0], backend=backend)
    assert model.info["capture"] == "traced symbolically" and not model.explain().islands
    model.save(tmp_path / "net.delta")
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frames[0].device)
    for each in (model, again):
        for frame in (*scripted_video((1, 3, 11, 12))[:3], *frames):
            with torch.no_grad():
                assert_close(each(frame), dense(frame))
        before = each(frames[-1])
        for rows, where in ((8, "if y.shape[2] > 8"), (12, "int(rows % 2)")):
            with pytest.raises(InputError, match=r"traced where .* is .* in test_ranks\.py:") as e:
                each(scripted_video((1, 3, rows, 9))[0])
            assert where in str(e.value)
        assert_same_bits(each(frames[-1]), before, "after the error")


def test_the_number_of_images_is_never_fixed(backend):
    """torch.export knows what follows from it, or that a graph holds for one number alone."""
    model = deltaconvert.convert(Counts().eval(), torch.rand(SHAPE), backend=backend)
    assert "torch.export" in model.info["capture"]


class Squeezes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).squeeze()
        return y.sum(1) if y.dim() == 3 else y * 2


def test_another_number_of_dimensions_is_an_error(backend):
    """One image instead of two has one dimension less behind squeeze(), so the network does something else."""
    model = deltaconvert.convert(Squeezes().eval(), torch.rand(SHAPE), backend=backend)
    before = model(torch.ones(SHAPE))
    with pytest.raises(InputError, match="traced where squeeze has 4 dimensions"):
        model(torch.ones(1, *SHAPE[1:]))
    assert_same_bits(model(torch.ones(SHAPE)), before, "after the error")


class Chunks(nn.Module):
    def forward(self, x):
        return sum(part.mean(2) for part in list(x.split(6, 2)))


def test_parts_are_as_many_as_on_the_example(backend):
    dense, frame = nn.Sequential(nn.Conv2d(3, 4, 3), Chunks()).eval(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, frame, backend=backend)
    assert model.info["capture"] == "traced symbolically"
    for rows in (13, 14):
        frame = torch.rand(2, 3, rows, 11)
        assert_close(model(frame), dense(frame).detach())
    with pytest.raises(InputError, match="traced where split has 2 parts"):
        model(torch.rand(2, 3, 15, 11))


class Caches(nn.Module):
    """Stays whole, for it branches on values, and keeps a grid of the frames that it sees."""

    grid = None

    def forward(self, x):
        if self.grid is None or self.grid.shape != x.shape:
            self.grid = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device).expand(x.shape)
        return x + self.grid if bool(x.sum() < 1e9) else x


class AroundAnIsland(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.caches, self.last = nn.Conv2d(3, 4, 3), Caches(), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        y = self.caches(self.first(x))
        assert x.dim() == 4 and len(x.shape) == 4
        return self.last(y).flatten(x.ndim - 2)


def test_islands_see_nothing_of_it(backend):
    dense, frame = AroundAnIsland().eval(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, frame, backend=backend)
    assert model.info["capture"].startswith("traced symbolically, around caches")
    with torch.no_grad():
        assert_close(model(frame), dense(frame))


def test_a_network_that_asks_for_no_size_does_not_load_torchs_compiler():
    program = """
import sys, torch, deltaconvert
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
deltaconvert.convert(network, torch.rand(1, 3, 16, 16), backend="reference")
assert "torch._dynamo" not in sys.modules, "it takes seconds of a warm start"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
