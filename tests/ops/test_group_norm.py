"""ops/group_norm.py, passes/split_norms.py, backends/cpu/parts.py"""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, check_operator, dense, edges, generator, same_bits, scripted_video
from torch import nn

import deltaconvert

A = (2, 6, 5, 7)
NORMS = {
    "nn.GroupNorm": nn.GroupNorm(3, 6),
    "one group": nn.GroupNorm(1, 6, eps=0.01),
    "not affine": nn.GroupNorm(6, 6, affine=False),
    "F.group_norm": lambda m, x: F.group_norm(x, 2, m.weight, bias=m.bias, eps=1e-3),
    "torch.group_norm": lambda m, x: torch.group_norm(x, 3, m.weight, m.bias),
    "nn.InstanceNorm2d": nn.InstanceNorm2d(6),
    "affine": nn.InstanceNorm2d(6, affine=True),
    "torch.instance_norm": lambda m, x: torch.instance_norm(
        x, m.weight, m.bias, None, None, True, 0.1, 0.1, False
    ),
    "F.instance_norm": lambda m, x: F.instance_norm(x, weight=m.weight, eps=0.1),
    # Known only once the plan has folded constants.
    "groups from a size": lambda m, x: F.group_norm(x, x.shape[1] // 2),
    "a computed weight": lambda m, x: F.group_norm(x, 2, m.weight * 2, m.bias.square()),
    "eps from a size": lambda m, x: F.instance_norm(x, eps=1 / x.shape[1]),
    "stored statistics": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "F.instance_norm, stored": lambda m, x: F.instance_norm(x, m.bias, m.weight, use_input_stats=False),
    "between convolutions": nn.Sequential(
        nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    ),
    "of what is normalised": nn.Sequential(nn.InstanceNorm2d(6), nn.GroupNorm(2, 6), nn.SiLU()),
}


def network(norm):
    if not isinstance(norm, nn.Module):
        norm = Call(norm, weight=torch.rand(6) + 0.5, bias=torch.randn(6))
    for name, part in norm.named_parameters():
        nn.init.uniform_(part, 0.5, 1.5) if "weight" in name else nn.init.normal_(part)
    return norm


@pytest.mark.parametrize("name", NORMS)
def test_spellings(backend, name):
    check_operator(network(NORMS[name]), A, threshold=0.1, backend=backend)


@pytest.mark.parametrize("size", [(1, 2), (1, 130), (9, 23), (33, 34)])
def test_sizes(backend, size):
    """Less than a part, some whole parts and a rest, more than one chunk of them."""
    norm = nn.Sequential(nn.GroupNorm(2, 6, eps=0.1), nn.ReLU(), nn.InstanceNorm2d(6, eps=0.1))
    check_operator(norm, (2, 6, *size), dtype=torch.float32, backend=backend)


def test_far_from_zero(backend):
    """Deviations of 0.01 around 1000 in single precision; a sum of squares would be noise."""
    norm = nn.Sequential(nn.GroupNorm(1, 3)).eval()
    video = [1000 + 0.01 * frame for frame in scripted_video((1, 3, 40, 40), torch.float32)]
    model = deltaconvert.convert(norm, video[0], backend=backend)
    for frame in video:
        exact = dense(copy.deepcopy(norm).double(), [frame.double()])
        # A value near 1000 has steps of 6e-5, 0.006 of the deviation; the mean is no better than that in single.
        assert (model(frame) - exact).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    norm = nn.Sequential(nn.GroupNorm(2, 6)).eval().to(dtype)
    video = scripted_video((1, 6, 9, 8), dtype)
    model = deltaconvert.convert(norm, video[0], backend=backend)
    for frame in video:
        exact = dense(copy.deepcopy(norm).double(), [frame.double()])
        assert (model(frame) - exact).abs().max() < 40 * torch.finfo(dtype).eps


def noisy(frames, shape, noise, seed=0):
    draw = generator(seed)
    still = torch.randn(shape, generator=draw)
    for _ in range(frames):
        frame = still.clone()
        frame[:, :, 2:5, 3:6] += noise * torch.randn(frame[:, :, 2:5, 3:6].shape, generator=draw)
        yield frame


def test_a_threshold_on_statistics_is_a_bound(backend):
    """100 frames of noise in a corner: the rest stays still, and the error is that of the statistics, added nowhere."""
    threshold = 0.02
    norm, shape = nn.Sequential(nn.GroupNorm(2, 6, affine=False)).eval(), (1, 6, 24, 24)
    frames = list(noisy(100, shape, 0.3))
    model = deltaconvert.convert(norm, frames[0], threshold={"statistics": threshold}, backend=backend)
    assert list(model.thresholds.values()) == [0, threshold]
    still = 0
    for frame in frames:
        out, exact = model(frame), dense(norm, [frame])
        mask = model.masks()["0"]
        still += int(not mask.all())
        deviation = frame.view(1, 2, -1).std(2).min() - threshold
        assert ((out - exact).abs() <= threshold / deviation * (1 + exact.abs()) + 1e-4).all()
        stored = edges(model)["_0_statistics" if "_0_statistics" in edges(model) else _name(model)]
        moved = torch.cat([frame.view(1, 2, -1).mean(2), frame.view(1, 2, -1).std(2, correction=0)], 1)
        assert ((stored.values.flatten(1) - moved).abs() <= threshold + 1e-4).all()
    assert still > 80


def _name(model):
    return next(name for name, edge in edges(model).items() if edge.values.shape[2:] == (1, 1))


def test_defaults_and_shares(backend):
    """One rule gives statistics 1 %, of the deviation and not of a mean that lies anywhere."""
    norm, frame = nn.Sequential(nn.GroupNorm(1, 3)).eval(), 100 + torch.randn(1, 3, 30, 30)
    model = deltaconvert.convert(norm, frame, threshold=0.1, backend=backend)
    assert model.thresholds["0.statistics"] == pytest.approx(0.01, rel=0.1)
    assert "0.statistics" not in deltaconvert.convert(norm, frame, backend=backend).thresholds
    named = deltaconvert.convert(norm, frame, threshold={"0.statistics": 0.5}, backend=backend)
    assert named.thresholds["0.statistics"] == 0.5


def test_history_leaves_no_trace(backend):
    """1,000 frames, each bit for bit what a network gives that has just been reset."""
    norm = nn.Sequential(nn.InstanceNorm2d(3), nn.GroupNorm(1, 3)).eval()
    draw = generator(0)
    frame = torch.randn(1, 3, 17, 19, generator=draw)
    model = deltaconvert.convert(norm, frame, backend=backend)
    fresh = copy.deepcopy(model)
    for t in range(1000):
        y, x = (int(torch.randint(16, (), generator=draw)) for _ in range(2))
        frame[:, :, y, x] = torch.randn(3, generator=draw) * 10 ** (t % 7 - 3)
        out = model(frame)
        if t % 25 == 24:
            fresh.reset()
            assert same_bits(out, fresh(frame)), f"frame {t}"


def test_only_touched_parts_are_read(monkeypatch):
    from deltaconvert.backends.cpu import parts

    read = []
    measure = parts.Parts._measure
    monkeypatch.setattr(
        parts.Parts, "_measure", lambda self, which: read.append(len(which)) or measure(self, which)
    )
    norm, frame = nn.Sequential(nn.GroupNorm(1, 3)).eval(), torch.randn(2, 3, 32, 64)
    model = deltaconvert.convert(norm, frame, backend="cpu")
    read.clear()
    model(frame)
    frame[1, :, 5, 5] += 1
    model(frame)
    model(frame)
    assert read == [64, 1]


def test_saved(tmp_path, backend):
    norm = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()).eval()
    video = scripted_video((1, 3, 9, 9), torch.float32)
    model = deltaconvert.convert(norm, video[0], threshold=0.05, backend=backend)
    model.save(tmp_path / "norm.delta")
    loaded = deltaconvert.load(tmp_path / "norm.delta", backend=backend, device=torch.get_default_device())
    assert loaded.thresholds == model.thresholds
    for frame in video:
        assert_close(loaded(frame), model(frame))


DENSE = {
    "of lists": (lambda m, x: F.group_norm(x.flatten(2), 2), "not N C H W"),
    "weights of the frame": (lambda m, x: F.group_norm(x, 2, x.mean((0, 2, 3))), "its weight is computed"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), A, backend=backend, expect="dense", reason=reason)
