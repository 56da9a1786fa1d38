"""3x3 convolutions by Winograd's algorithm, compared with torch and among each other."""

import pytest
import torch
from chained import NAN, WINDOWS, assert_bits_stay, convolution, poisoned, rows_of
from oracle import Call, assert_same_bits, check_operator
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import pairs, winograd
from deltaconvert.backends.cpu.chains import Chain, Stage
from deltaconvert.backends.cpu.fastest import fastest
from deltaconvert.backends.cpu.native import loops
from deltaconvert.passes import join_pairs
from deltaconvert.reach import Window

pytestmark = pytest.mark.skipif(not loops.FOUND, reason="numba is not installed")
SQUARES = [WINDOWS[1], ((3, 3), (1, 1), (0, 2), (1, 1))]  # 3x3 without stride: the second moves the map


def chain_of(stages, window):
    chain = fastest(stages, window, poisoned())
    assert isinstance(chain, winograd.Winograd)
    return chain


@pytest.mark.parametrize("geometry", SQUARES, ids=repr)
@pytest.mark.parametrize(
    "streams, size", [(1, (13, 10)), (3, (7, 9)), (2, (8, 6)), (2, (3, 1)), (1, (4, 40))]
)
@pytest.mark.parametrize(
    "channels, out, adds, options, activation",
    [
        (64, 32, False, {"low": 0.0}, torch.relu),
        (32, 96, True, {}, lambda x: x),
        (80, 64, True, {"slope": 0.1, "high": 2.0}, lambda x: nn.functional.leaky_relu(x, 0.1).clamp(max=2)),
    ],
)
def test_one_stage(geometry, streams, size, channels, out, adds, options, activation):
    conv, x = convolution(channels, out, geometry, bias=adds), torch.randn(streams, channels, *size)
    expected = conv(x)
    skip = torch.randn_like(expected)
    expected = rows_of(activation(expected + skip if adds else expected))
    window = Window(*geometry, size, tuple(skip.shape[2:]))
    chain, beside = chain_of([Stage(conv, adds, **options)], window), [rows_of(skip)] if adds else []
    every = torch.full_like(expected, NAN)
    chain.run(rows_of(x), None, len(every), beside, every)
    # Sums of up to 720 products of magnitude 1, of which some are added and taken away again.
    torch.testing.assert_close(every, expected, rtol=2e-5, atol=2e-5)
    for count in {1, 2, len(every) // 2, len(every) - 1}:
        pixels = torch.randperm(len(every))[:count].sort().values
        some = torch.full_like(expected, NAN)
        chain.run(rows_of(x), pixels, len(pixels), beside, some)
        assert_same_bits(some[pixels], every[pixels], f"{count} pixels")
        others = torch.ones(len(every), dtype=torch.bool).index_fill(0, pixels, False)
        assert some[others].isnan().all(), "a pixel was written that is not in the list"
        placed = torch.full((len(pixels), out), NAN)
        taken = [rows.index_select(0, pixels) for rows in beside]
        chain.run(rows_of(x), pixels, len(pixels), taken, placed, by_place=True)
        assert_same_bits(placed, every[pixels], f"{count} rows")
        limits, marks = torch.full((out,), 0.5), torch.zeros(len(every), dtype=torch.bool)
        stored = every + torch.randn(len(every), 1) * (torch.rand(len(every), 1) < 0.5)
        moved = ((stored - every).abs() > 0.5).any(1) & ~others
        wanted = torch.where(moved.view(-1, 1), every, stored)
        chain.run(rows_of(x), pixels, len(pixels), beside, stored, limits=limits, marks=marks)
        assert torch.equal(marks, moved)
        assert_same_bits(stored, wanted, "rows that moved are stored")


def test_stages_behind_it():
    x, sizes = torch.randn(2, 32, 9, 11), [(32, 64, SQUARES[0]), (64, 40, WINDOWS[0]), (40, 24, WINDOWS[0])]
    convs = [convolution(*size) for size in sizes]
    skip = torch.randn(2, 24, 9, 11)
    expected = rows_of((convs[2](convs[1](convs[0](x).relu())) + skip).relu())
    stages = [Stage(convs[0], False, low=0.0), Stage(convs[1], False), Stage(convs[2], True, low=0.0)]
    chain = chain_of(stages, Window(*SQUARES[0], (9, 11), (9, 11)))
    every, some = torch.full_like(expected, NAN), torch.full_like(expected, NAN)
    chain.run(rows_of(x), None, len(every), [rows_of(skip)], every)
    torch.testing.assert_close(every, expected, rtol=2e-5, atol=2e-5)
    pixels = torch.arange(3, len(every), 4)
    chain.run(rows_of(x), pixels, len(pixels), [rows_of(skip)], some)
    assert_same_bits(some[pixels], every[pixels], "a list")


def test_a_pixel_depends_on_its_own_window_alone():
    conv, x = convolution(32, 32, SQUARES[0]), torch.randn(1, 32, 8, 9)
    chain = chain_of([Stage(conv, False)], Window(*SQUARES[0], (8, 9), (8, 9)))
    before = torch.empty(72, 32)
    chain.run(rows_of(x), None, 72, [], before)
    for y, column in ((0, 0), (3, 4), (4, 3), (7, 8)):
        other, after = x.clone(), torch.empty(72, 32)
        other[:, ::2, y, column], other[:, 1::2, y, column] = NAN, float("inf")
        chain.run(rows_of(other), None, 72, [], after)
        near = torch.zeros(8, 9, dtype=torch.bool)
        near[max(0, y - 1) : y + 2, max(0, column - 1) : column + 2] = True
        assert after[near.view(-1)].isnan().all()
        assert_same_bits(after[~near.view(-1)], before[~near.view(-1)], "pixels that do not read it")


def test_which_convolutions():
    def suits(channels, out, geometry=SQUARES[0], groups=1, window=True):
        conv = convolution(channels, out, geometry)
        conv.groups = groups
        return winograd.suits(Stage(conv, False), Window(*geometry, (9, 9), (9, 9)) if window else None)

    assert suits(64, 64)
    assert not suits(3, 64) and not suits(64, 1) and not suits(64, 66) and not suits(66, 64)
    assert not suits(64, 64, groups=2) and not suits(64, 64, window=False)
    assert not any(suits(64, 64, geometry) for geometry in WINDOWS if geometry != SQUARES[0])


def test_it_is_as_near_to_the_exact_sums_as_float32_allows():
    conv, x = convolution(256, 64, SQUARES[0]), torch.randn(1, 256, 20, 20)
    window = Window(*SQUARES[0], (20, 20), (20, 20))
    exact = rows_of(nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1))
    errors = []
    for make in (Chain, winograd.Winograd):
        out = torch.empty(400, 64)
        make([Stage(conv, False)], window, poisoned()).run(rows_of(x), None, 400, [], out)
        errors.append((out - exact).square().mean().sqrt())
    assert errors[1] < 3 * errors[0]


@pytest.mark.parametrize("threshold", (0.0, 0.1))
@pytest.mark.parametrize("joined", (False, True))
def test_networks(monkeypatch, threshold, joined):
    if joined:  # to pairs, whose bands are as low as can be
        monkeypatch.setattr(join_pairs, "BYTES", 0)
        monkeypatch.setattr(pairs, "BAND_BYTES", 0)
    check_operator(network(), (2, 3, 19, 23), dtype=torch.float32, threshold=threshold, backend="cpu")


@pytest.mark.parametrize("threshold", (0.0, 0.1))
def test_a_skip_and_a_tail_that_torch_computes(threshold):
    model = Call(
        lambda self, x: nn.functional.silu(self.second(self.first(x).relu()) + self.beside(x)),
        first=nn.Conv2d(3, 32, 3, padding=1),
        second=nn.Conv2d(32, 64, 3, padding=1),
        beside=nn.Conv2d(3, 64, 1),
    )
    check_operator(model, (2, 3, 13, 18), dtype=torch.float32, threshold=threshold, backend="cpu")


def test_bits_stay_in_pairs(monkeypatch):
    frame, model = torch.rand(1, 3, 21, 18), network()
    apart = deltaconvert.convert(model, frame, backend="cpu")
    monkeypatch.setattr(join_pairs, "BYTES", 0)
    monkeypatch.setattr(pairs, "BAND_BYTES", 0)
    together = deltaconvert.convert(model, frame, backend="cpu")
    assert_bits_stay(model, together, apart, frame)


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU6()),
        *(nn.Conv2d(64, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 3, padding=1)),
        *(nn.ReLU(), nn.Conv2d(32, 20, 1), nn.ReLU()),
    ).eval()
