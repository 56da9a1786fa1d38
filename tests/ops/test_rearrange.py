"""ops/rearrange.py and the spellings of layouts (passes/follow_layouts.py)."""

import pytest
import torch
from oracle import Call, assert_close, assert_kind, check_operator, dense, scripted_video
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
    "heads that hold their own queries and keys": lambda m, x: (
        lambda q, k: (q * k.sigmoid()).transpose(1, 2).reshape(2, 4, 6, 6).permute(0, 3, 1, 2) * 2
    )(*x.relu().permute(0, 2, 3, 1).reshape(-1, 24, 3, 4).transpose(1, 2).chunk(2, 3)),
    "every other channel of a head": lambda m, x: (
        x.relu().flatten(2).transpose(1, 2).view(2, 24, 3, 4)[..., 1::2].flatten(2).mT.view(2, 6, 4, 6) + 1
    ),
    "some of the heads": lambda m, x: (
        x.relu().flatten(2).view(2, 3, 4, 24).transpose(1, 2)[:, :, 1:].transpose(1, 2).reshape(2, 8, 4, 6)
        * 2
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


class Windows(nn.Module):
    """Attention within windows of 2x2 pixels, shifted by one, of a map N H W C, as Swin writes it; `late`, as Twins
    does, which crops what was not shifted, and projects the tokens of the whole map."""

    def __init__(self, channels, heads=2, late=False):
        super().__init__()
        self.heads, self.late, self.norm = heads, late, nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        n, height, width, channels = x.shape
        y = torch.nn.functional.pad(self.norm(x), (0, 0, 0, width % 2, 0, height % 2)).roll((-1, -1), (1, 2))
        down, right = (height + 1) // 2, (width + 1) // 2
        y = y.view(n, down, 2, right, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        q, k, v = (
            self.qkv(y).reshape(-1, 4, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(-1, 4, channels)
        y = y if self.late else self.proj(y)
        y = (
            y.view(n, down, right, 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(n, 2 * down, 2 * right, channels)
        )
        y = (y if self.late else y.roll((1, 1), (1, 2)))[:, :height, :width]
        return x + (self.proj(y.reshape(n, -1, channels)).view(x.shape) if self.late else y)


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.windows, self.deeper = nn.Conv2d(3, 4, 2, 2), Windows(4), Windows(6, late=True)
        self.norm, self.merge = nn.LayerNorm(16), nn.Linear(16, 6)
        self.mlp = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))

    def forward(self, x):
        x = self.windows(self.stem(x).permute(0, 2, 3, 1))
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        x = self.deeper(self.merge(self.norm(x)))
        return (x + self.mlp(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(20, 28), (24, 16)])
def test_windows(backend, size):
    """All but the products of the attention: its Linear layers, shifts, pads, norms and merged patches are maps."""
    torch.manual_seed(0)
    network, shape = Swin().eval(), (2, 3, *size)
    video = scripted_video(shape, torch.float32)
    video = [frame.cuda() for frame in video] if backend == "cuda" else video
    network = network.to(video[0].device)
    model = deltaconvert.convert(network, video[0], backend=backend)
    dense = {row.operator for row in model.explain().rows if row.kind == "dense"}
    work = {"Linear", "LayerNorm", "Roll", "Pad", "add", "getitem", "Conv2d"}
    assert not dense & work and "matmul" in dense, dense
    for t, frame in enumerate(video):
        assert_close(model(frame), network(frame), f"frame {t}")


def test_a_window_that_nothing_touches_is_not_computed():
    network = Windows(4).eval()
    frame = torch.randn(1, 4, 12, 12)
    model = deltaconvert.convert(
        Call(lambda m, x: m.windows(x.permute(0, 2, 3, 1)), windows=network).eval(), frame
    )
    model(frame)
    frame = frame.clone()
    frame[:, :, 5, 6] += 1
    model(frame)
    changed = {layer.path: layer.density for layer in model.stats().layers}
    assert changed["windows.qkv"] == 1 / 144 and changed["windows.proj"] == 4 / 144, changed


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
