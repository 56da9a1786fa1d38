"""What the loops of the cpu backend do, beside the same by torch; and the backend without them."""

import pytest
import torch
from oracle import assert_same_bits, check_operator
from torch import nn

from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu.edges import Commit, Edge, any_set, listed
from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.backends.cpu.native import differences, loops, masks
from deltaconvert.backends.cpu.native.masks import Spread
from deltaconvert.backends.reference import INTEGER
from deltaconvert.reach import Window

compiled = pytest.mark.skipif(not loops.FOUND, reason="numba is not installed")
SIZES = [(1, (13, 10)), (3, (7, 9)), (2, (1, 5))]
WINDOWS = [  # kernel, stride, padding, dilation
    *(((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((1, 5), (1, 3), (0, 2), (1, 1))),
    *(((3, 3), (1, 1), (2, 2), (2, 2)), ((5, 3), (2, 1), (2, 1), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1))),
]


def window_on(size, kernel, stride, padding, dilation):
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return Window(kernel, stride, padding, dilation, size, out) if min(out) > 0 else None


def some_masks(streams, size):
    for share in (0.0, 0.05, 0.5, 1.0):
        yield torch.rand(streams, 1, *size) < share


@compiled
@pytest.mark.parametrize("streams, size", SIZES)
@pytest.mark.parametrize("geometry", WINDOWS)
def test_spread(streams, size, geometry):
    window = window_on(size, *geometry)
    if window is None or window.orphans is not None:
        pytest.skip("no such map, or one that the loops leave to torch")
    spread = Spread(window)
    for mask in some_masks(streams, size):
        other = torch.rand(streams, 1, *window.out_size) < 0.1
        assert torch.equal(spread(mask), window.spread(mask))
        assert torch.equal(spread(mask, other), window.spread(mask) | other)


@compiled
@pytest.mark.parametrize("streams, size", SIZES)
def test_tiles(streams, size):
    grid = Grid(streams, size, size, (3, 3), (1, 1), (1, 1), (1, 1), False, (4, 4), "")
    for mask in some_masks(streams, size):
        assert torch.equal(grid.touched(mask, listed(mask)).sort().values, grid.touched(mask))


@pytest.mark.parametrize("streams, size", SIZES)
def test_bits_of_masks(streams, size):
    for mask in some_masks(streams, size):
        assert any_set(mask) == bool(mask.any())
        assert torch.equal(listed(mask), mask.view(-1).nonzero().view(-1))
    for place in range(mask.numel()):
        one = torch.arange(mask.numel()) == place
        assert any_set(one) and listed(one).tolist() == [place]


@compiled
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16))
@pytest.mark.parametrize("limit", (None, 0.3))
@pytest.mark.parametrize("judged", (False, True))
@pytest.mark.parametrize("shape", ((1, 3, 1, 5003), (2, 1, 7, 1), (3, 5, 51, 81)))
def test_where_frames_differ(dtype, limit, judged, shape):
    if limit is not None and dtype not in loops.DTYPES:
        pytest.skip("torch compares those")
    streams = torch.tensor([0, 2] if shape[0] == 3 else range(shape[0]))
    rows = torch.randn(shape[0] * shape[2] * shape[3], shape[1]).to(dtype)
    stored = rows.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2).contiguous()
    for share in (0.0, 0.02, 0.2, 1.0):
        frame = torch.where(torch.rand(shape) < share, torch.randn(shape).to(dtype), stored)
        if share:
            frame[0, 0, 0, 0] = frame[-1, 1 % shape[1], -1, -1] = float("nan")
            frame[-1, 0, -1, 0], frame[-1, -1, -1, 0] = float("inf"), -float("inf")
        bits = INTEGER[dtype.itemsize]
        differs = frame.view(bits) != stored.view(bits)
        if limit is not None:
            differs = ((frame - stored).abs() <= limit).logical_not()
        expected = differs.any(1, keepdim=True)
        expected[[stream for stream in range(shape[0]) if stream not in streams]] = False
        mask = expected.clone() if judged else torch.zeros_like(expected)
        kept = torch.where(expected, frame, stored)
        broken = torch.arange(shape[0]) if share < 1 else None
        wanted = (expected & ~frame.isfinite().all(1, keepdim=True)).sum((1, 2, 3)) + torch.arange(shape[0])
        count, pixels = differences.look(frame, stored, rows, mask, streams, limit, broken, judged=judged)
        assert broken is None or torch.equal(broken, wanted)
        assert torch.equal(mask, expected) and count == expected.sum()
        assert (pixels is not None) == (0 < 4 * count <= len(rows))
        assert pixels is None or torch.equal(pixels, listed(expected))
        assert_same_bits(stored, kept, "stored")
        assert_same_bits(rows, kept.permute(0, 2, 3, 1).reshape(rows.shape), "rows")


@compiled
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("threshold", (0.0, 0.5, "channels"))
@pytest.mark.parametrize("restricted", (False, True))
def test_renew_is_what_torch_does(monkeypatch, dtype, threshold, restricted):
    shape = (2, 9, 6, 5)
    amount = torch.rand(9, dtype=dtype) if threshold == "channels" else threshold
    quick = Edge(Map(shape, dtype, torch.device("cpu"), amount))
    monkeypatch.setattr(loops, "FOUND", False)
    plain = Edge(Map(shape, dtype, torch.device("cpu"), amount))
    assert quick.limits is not None and plain.limits is None
    for step in range(6):  # the first finds nothing stored yet, and one holds NaN
        new = torch.randn(60, 9, dtype=dtype) if step % 2 else plain.rows + 0.3 * torch.randn(60, 9).to(dtype)
        new[step, 3] = float("nan")
        candidates = torch.rand(2, 1, 6, 5) < 0.7 if restricted and step else torch.ones(2, 1, 6, 5).bool()
        if step == 5:
            whole = new.view(2, 6, 5, 9).permute(0, 3, 1, 2)
            for edge in (quick, plain):
                edge.adopt(whole, candidates, [])
        else:
            places = torch.arange(60) if restricted else listed(candidates)
            places = torch.cat([places, places[-1:], places[-1:]])  # as a chunk is filled up
            for edge in (quick, plain):
                commit = Commit(edge, candidates if restricted else None)
                commit.rows(places, new[places].clone())
                commit.finish(candidates, None, len(places))
        assert torch.equal(quick.mask, plain.mask) and quick.count == plain.count
        assert torch.equal(quick.pixels.sort().values, plain.pixels.sort().values)
        assert_same_bits(quick.rows, plain.rows, f"step {step}")


@compiled
def test_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(masks, "GRAIN", 1)
    window = window_on((31, 37), (3, 3), (1, 1), (1, 1), (1, 1))
    before, mask = torch.get_num_threads(), torch.rand(1, 1, 31, 37) < 0.1
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(Spread(window)(mask), window.spread(mask))
    torch.set_num_threads(before)


def inverted_residuals():
    def block(width, wide, stride, out):
        return nn.Sequential(
            *(nn.Conv2d(width, wide, 1), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6(), nn.Conv2d(wide, out, 1)),
        )

    return nn.Sequential(block(5, 40, 1, 36), block(36, 80, 2, 7), block(7, 33, 1, 4), nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize("found", (True, False))
def test_networks_with_and_without(monkeypatch, found):
    if found and not loops.FOUND:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(loops, "FOUND", found)
    check_operator(inverted_residuals(), (2, 5, 21, 18), dtype=torch.float32, threshold=0.1, backend="cpu")
