"""deltaconvert/narrow.py: changes that only the middle of a window sees, on every backend and in every file."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import assert_close, edges, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.reach import Pixel, Window, narrowed, seen_by

NARROW = {"input": "0.05 narrow", "activation": "0.1 weighted narrow", "linear": "0 narrow"}


def network() -> nn.Sequential:
    """Windows of 3x3 and 5x5, with stride 2, dilation, by channel; a pool; a projection."""
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU6(),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(24, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, 8, 5, padding=2),
    ]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (7, 2, 3, 1), (4, 2, 1, 1), (3, 1, 2, 2), (2, 2, 0, 1)],
)
@pytest.mark.parametrize("size", [(12, 16), (13, 9)])
def test_a_pixel_reaches_one(kernel, stride, padding, dilation, size):
    out = tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in size)
    window = Window(*((n, n) for n in (kernel, stride, padding, dilation)), size, out)
    narrow = narrowed(window)
    ones = torch.ones(1, 1, *size, dtype=torch.bool)
    assert bool(narrow.spread(ones).all()), "a mask of ones stays one"
    reached = torch.zeros(out, dtype=torch.long)
    for place in range(size[0] * size[1]):
        mask = torch.zeros_like(ones)
        mask.view(-1)[place] = True
        found = narrow.spread(mask)
        assert not bool((found & ~window.spread(mask)).any())
        assert int(found.sum()) == (1 if narrow is not window else int(window.spread(mask).sum()))
        reached += found[0, 0]
    if narrow is not window:
        assert int(reached.max()) <= stride**2
    assert narrow.reads(((1, 2), (1, 2))) == window.reads(((1, 2), (1, 2))), "it reads what it read"


def test_windows_that_stay():
    """Without padding, border pixels are the middle of no window; with more padding, some middles lie outside."""
    for padding, out in ((0, 8), (2, 12)):
        window = Window((3, 3), (1, 1), (padding, padding), (1, 1), (10, 10), (out, out))
        assert narrowed(window) is window and seen_by(window) is window
    same = Window((3, 3), (1, 1), (1, 1), (1, 1), (10, 10), (10, 10))
    assert isinstance(seen_by(narrowed(same)), Pixel) and seen_by(same) is same


def test_a_narrow_change_reaches_its_own_pixel_alone(backend):
    """A change of the input reaches its own pixel, and what it does to the pixels around it is not stored."""
    net = nn.Conv2d(2, 3, 3, padding=1).eval().to(torch.get_default_device())
    video = scripted_video((2, 2, 13, 18), torch.float32)
    model = deltaconvert.convert(net, video[0], threshold={"input": "0.2 narrow"}, backend=backend)
    seen, stored = torch.full_like(video[0], float("nan")), None
    for t, frame in enumerate(video):
        found = model(frame)
        moved = ~((frame - seen).abs() <= 0.2).all(1, keepdim=True)
        seen = torch.where(moved, frame, seen)
        stored = net(seen) if stored is None else torch.where(moved, net(seen), stored)
        assert_close(found, stored, f"frame {t}")


def test_backends_agree(backend):
    net = network().to(torch.get_default_device())
    video = scripted_video((2, 3, 37, 50), torch.float32)
    model = deltaconvert.convert(net, video[0], threshold=NARROW, backend=backend)
    other = deltaconvert.convert(net, video[0], threshold=NARROW, backend="reference")
    wide = {name: rule.replace(" narrow", "") for name, rule in NARROW.items()}
    plain = deltaconvert.convert(net, video[0], threshold=wide, backend="reference")
    for t, frame in enumerate(video):
        assert_close(model(frame), other(frame), f"frame {t}")
        theirs = other.masks()
        assert all(torch.equal(mask, theirs[path]) for path, mask in model.masks().items()), f"frame {t}"
        plain(frame)
    done, all_of_it = (sum(layer.total_macs_done for layer in m.stats().layers) for m in (model, plain))
    assert done < 0.9 * all_of_it


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
        lambda: nn.Conv2d(8, 8, 3, padding=1).double(),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: nn.AvgPool2d(3, 1, 1),
    ],
)
def test_what_is_computed_beside_it_is_not_stored(layer, backend):
    """Tiles and whole maps contain pixels that are no candidates; these do not see a change in their window."""
    torch.manual_seed(5)
    net = nn.Sequential(layer(), nn.ReLU()).eval().to(torch.get_default_device())
    dtype = next((weight.dtype for weight in net.parameters()), torch.float32)
    video = scripted_video((2, 8, 37, 50), dtype)
    model, other = (
        deltaconvert.convert(net, video[0], threshold={"input": "0.05 narrow"}, backend=each)
        for each in (backend, "reference")
    )
    for t, frame in enumerate(video):
        assert_close(model(frame), other(frame), f"frame {t}")


def test_a_full_frame_is_the_dense_networks(backend):
    net = network().to(torch.get_default_device())
    video = scripted_video((1, 3, 37, 50), torch.float32)
    model = deltaconvert.convert(net, video[0], threshold=NARROW, backend=backend)
    for frame in (video[0], *video[2:4]):
        model.reset()
        assert_close(model(frame), net(frame))


def test_maps_between_are_not_joined_over():
    """An inverted residual whose depthwise convolution reads narrow changes, so that the map before it is stored."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(8, 48, 1), nn.ReLU6(), nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU6()]
    net = nn.Sequential(*layers, nn.Conv2d(48, 8, 1)).eval()
    video = scripted_video((1, 8, 180, 200), torch.float32)
    for rules in (
        {"input": "0 narrow"},
        {"0": "0 narrow", "1": "0 narrow"},
        {"input": "0.3 narrow", "linear": "0 narrow"},
    ):
        model = deltaconvert.convert(net, video[0], threshold=rules, backend="cpu")
        other = deltaconvert.convert(net, video[0], threshold=rules, backend="reference")
        for frame in video[:6]:
            assert_close(model(frame), other(frame))
        last = (list(m.masks().values())[-1] for m in (model, other))
        assert torch.equal(*last)


def test_rules_are_kept(tmp_path):
    frame = torch.rand(1, 3, 21, 30)
    model = deltaconvert.convert(network(), frame, threshold=NARROW)
    rows = {row.path: row.how for row in model.explain().rows}
    assert rows["input_0"] == "narrow" and rows["0"] == "weighted, narrow"
    assert "0.05 narrow" in str(model.explain())
    model.save(tmp_path / "narrow.delta")
    back = deltaconvert.load(tmp_path / "narrow.delta", backend="reference")
    assert back.rules == model.rules
    assert {row.path: row.how for row in back.explain().rows} == rows
    assert [edge.threshold is None for edge in edges(back).values()].count(False) == 5


def test_a_refresh_does_not_renew_it():
    """A refresh renews a band of the frame, and layers behind it only where the frame differs; a warning says so."""
    example = torch.rand(1, 3, 32, 48)
    gate = {"refresh": 30}
    with pytest.warns(UserWarning, match="not what narrow changes left out"):
        deltaconvert.convert(network(), example, threshold=NARROW, gate=gate, backend="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deltaconvert.convert(network(), example, threshold=NARROW, backend="reference")
        model = deltaconvert.convert(network(), example, threshold=0.1, gate=gate, backend="reference")
    with pytest.warns(UserWarning, match="not what narrow changes left out"):
        model.with_thresholds(NARROW, example)
