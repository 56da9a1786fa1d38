"""Networks that go by the number of dimensions in Python are one graph for all sizes of frames."""

from __future__ import annotations

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
    assert {row.operator for row in model.explain().islands} == {"new_zeros", "Rearrange"}
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
    """Asserts channels, and goes by them; sizes are checked in a way that only torch.export follows."""

    def __init__(self, sizes=False):
        super().__init__()
        self.first, self.last, self.sizes = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), sizes

    def forward(self, x):
        n, c, h, w = x.shape
        assert c == 3 and x.size(1) <= 3, f"{c} channels"
        y = self.first(x)
        if y.shape[1] % 2:
            y = y[:, 1:]
        if self.sizes and h > 5:
            y = y.relu()
        return self.last(y) * (n * w)


def test_channels_are_the_same_in_every_frame(backend, tmp_path):
    dense = Channels().eval().double()
    model = deltaconvert.convert(dense, scripted_video(SHAPE)[0], backend=backend)
    assert model.info["capture"] == "traced symbolically" and not model.explain().islands
    for frame in (*scripted_video(SHAPE)[:3], *scripted_video((1, 3, 7, 12))[:3]):
        with torch.no_grad():
            assert_close(model(frame), dense(frame))
    model.save(tmp_path / "net.delta")
    deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)
    sized = deltaconvert.convert(Channels(sizes=True).eval(), torch.rand(SHAPE), backend=backend)
    assert "torch.export" in sized.info["capture"]


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
    """How many parts there are follows from a size, not from the number of dimensions."""

    def forward(self, x):
        return sum(next(iter(x.split(4, 2))).mean(2)) * len(x)


def test_numbers_that_follow_from_sizes_are_not_taken_for_ranks(backend):
    dense, frame = nn.Sequential(nn.Conv2d(3, 4, 3), Chunks()).eval(), torch.rand(SHAPE)
    model = deltaconvert.convert(dense, frame, backend=backend)
    assert "Proxy object cannot be iterated" in model.info["capture"]
    assert_close(model(frame), dense(frame).detach())


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
