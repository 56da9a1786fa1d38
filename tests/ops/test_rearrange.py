"""ops/rearrange.py and the spellings of layouts (passes/follow_layouts.py)."""

import pytest
import torch
from oracle import Call, assert_close, assert_kind, check_operator, dense
from torch import nn

import deltaconvert

A = (2, 12, 4, 6)
# What these come to is the map itself, an order of its channels, or a pixel shuffle.
DELTA = {
    "there and back": lambda m, x: x.flatten(1).unflatten(1, (12, 4, 6)) * 2,
    "squeezed and back": lambda m, x: x[:, :, None].squeeze(2).unsqueeze(0)[0] + 1,
    "swapped twice": lambda m, x: x.swapaxes(1, 3).swapdims(3, 1).relu(),
    "modules": lambda m, x: m.unflatten(m.flatten(x)).relu(),
    "like another": lambda m, x: x.reshape(2, 12, 24).view_as(x).reshape_as(x).relu(),
    "a shuffle of channels": lambda m, x: (
        x.view(x.size(0), 3, 4, x.size(2), -1).transpose(1, 2).contiguous().view(x.shape)
    ),
    "pixel shuffle": lambda m, x: x.view(2, 3, 2, 2, 4, 6).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 8, 12),
    "depth to space": lambda m, x: x.view(2, 2, 2, 3, 4, 6).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 8, 12),
    "pixel unshuffle": lambda m, x: x.view(2, 12, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 48, 2, 3),
    "space to depth": lambda m, x: x.view(2, 12, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 48, 2, 3),
    "into channels": lambda m, x: (
        x[:, :, :, :4].view(2, 12, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    ),
    "slices of N H W C": lambda m, x: x.relu().permute(0, 2, 3, 1)[:, 1:3, ::2, 3:].permute(0, 3, 1, 2) * 2,
    "joined in N H W C": lambda m, x: (
        (lambda t: torch.cat([t, t[..., 1:3]], -1))(x.relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * 2
    ),
    "joined in tokens": lambda m, x: (
        (lambda t: torch.cat([t, t.relu()], 2))(x.flatten(2).transpose(1, 2))
        .transpose(1, 2)
        .view(2, 24, 4, 6)
        .relu()
    ),
    "means of channels in N H W C": lambda m, x: (
        (lambda t: t - t.mean(-1, keepdim=True))(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()
    ),
    "a width of one": lambda m, x: x.mean((2, 3), keepdim=True).view(2, 12).view(2, 12, 1, 1) * x,
}


@pytest.mark.parametrize("name", DELTA)
def test_is_delta(backend, name):
    module = Call(DELTA[name], flatten=nn.Flatten(2), unflatten=nn.Unflatten(2, (4, 6)))
    check_operator(module, A, threshold=0.1, backend=backend)


class ShuffleUnit(nn.Module):
    """ShuffleNet's: half of the channels are worked on, then the halves are interleaved."""

    def __init__(self):
        super().__init__()
        self.work = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.work(b)), dim=1)
        n, channels, height, width = x.size()
        x = x.view(n, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(n, channels, height, width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shuffle_unit(backend, dtype):
    network = nn.Sequential(ShuffleUnit(), ShuffleUnit())
    check_operator(network, (2, 12, 9, 7), dtype=dtype, threshold=0.1, backend=backend)


# Something reads another layout.
DENSE = {
    "the output": (lambda m, x: x.relu().permute(0, 2, 3, 1), "the layout that output reads"),
    "an island": (lambda m, x: x.flatten(2).cumsum(2).view(x.shape), "the layout that cumsum reads"),
    "an island on tokens": (lambda m, x: m.linear(x.permute(0, 2, 3, 1)).cumsum(3), "moves values between"),
    "rows for columns": (lambda m, x: x.transpose(2, 3).relu(), "the layout that relu reads"),
    "boxes that are not square": (
        lambda m, x: x.view(2, 12, 2, 2, 6).transpose(2, 3).reshape(2, 24, 2, 6).relu(),
        "the layout that relu reads",
    ),
    "streams": (lambda m, x: x.transpose(0, 1).relu(), "has batch 12, the frame has 2"),
    "a frame of N H W C": (lambda m, x: m.conv(x.permute(0, 3, 1, 2)), "the layout that conv reads"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, linear=nn.Linear(12, 3), conv=nn.Conv2d(6, 4, 3, padding=1))
    check_operator(module, A, backend=backend, expect="dense", reason=reason)


def test_a_frame_of_n_h_w_c_is_compared_as_a_map(backend):
    """What stands behind the permute is not moved before it: the frame's own layout has no pixels."""
    network = Call(lambda m, x: m.conv((x.permute(0, 3, 1, 2) - 0.5) * 2), conv=nn.Conv2d(3, 4, 3)).eval()
    model = deltaconvert.convert(network, torch.rand(2, 7, 8, 3), backend=backend)
    assert [row.path for row in model.explain().rows if row.kind == "sparsify"] == ["sparsify(permute)"]


def test_keep_dense_goes_before_layouts(backend):
    network = Call(
        lambda m, x: m.linear(x.relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2), linear=nn.Linear(12, 3)
    )
    frame = torch.rand(A)
    model = deltaconvert.convert(network.eval(), frame, backend=backend, keep_dense=["linear"])
    assert_kind(model, "dense", "keep_dense names it")
    assert torch.allclose(model(frame), network(frame), atol=1e-5)


def test_views_of_what_was_contiguous(backend):
    """The frame lies in memory as N H W C, and so do maps of some backends: a view of them would be refused."""
    network = Call(
        lambda m, x: (x.contiguous().view(2, -1), m.conv(x).contiguous().view(2, -1, 2)),
        conv=nn.Conv2d(6, 4, 1),
    )
    frame = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last)
    model = deltaconvert.convert(network.eval(), frame, backend=backend)
    assert_close(model(frame), dense(network, [frame]))
