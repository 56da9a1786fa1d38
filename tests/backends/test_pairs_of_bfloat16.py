"""Chains in bfloat16, which multiply pairs of channels or rows that they widen, against exact sums; and networks of
such chains."""

from itertools import pairwise

import pytest
import torch
from chained import NAN, WINDOWS, chain_of, convolution, depthwise, poisoned, rows_of
from oracle import assert_same_bits, rounding
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import chains, residuals, winograd
from deltaconvert.backends.cpu.chains import Chain, Stage, can_chain, multiplies_pairs
from deltaconvert.backends.cpu.convolutions import Convolutions
from deltaconvert.backends.cpu.fastest import fastest
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.residuals import Strips
from deltaconvert.backends.cpu.sparse import Sparse
from deltaconvert.ops.conv import Conv2d
from deltaconvert.passes import join_residuals
from deltaconvert.reach import Window

BFLOAT16, EPS = torch.bfloat16, torch.finfo(torch.bfloat16).eps
CHAINS = loops.FOUND and can_chain([convolution(2, 16)], BFLOAT16)
needs_pairs = pytest.mark.skipif(not CHAINS, reason="no numba, or no AVX512-BF16, or AMX beside it")


def to(dtype, conv):
    weight, bias = conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)
    return Conv2d(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def unwritten(rows, channels):
    return torch.full((rows, channels), NAN, dtype=BFLOAT16)


@needs_pairs
@pytest.mark.parametrize("geometry", WINDOWS, ids=repr)
@pytest.mark.parametrize(
    "channels, out, bias",
    [
        *((2, 16, True), (6, 40, False), (34, 33, True), (64, 96, True)),
        # Of an odd depth; to less than a vector of channels, and to so few that they are summed along the depth.
        *(
            (1, 64, True),
            (3, 32, False),
            (5, 33, True),
            (33, 3, True),
            (48, 5, False),
            (64, 1, True),
            (96, 6, True),
        ),
    ],
)
def test_one_stage(geometry, channels, out, bias):
    conv = to(BFLOAT16, convolution(channels, out, geometry, bias))
    for streams, size in ((1, (13, 10)), (3, (7, 9))):
        x = torch.randn(streams, channels, *size).bfloat16()
        exact = to(torch.float64, conv)(x.double())
        skip = torch.randn(exact.shape).bfloat16()
        window = None if geometry == WINDOWS[0] else Window(*geometry, size, tuple(exact.shape[2:]))
        chain, adds = chain_of([Stage(conv, True, low=0.0)], window), [rows_of(skip)]
        exact = rows_of((exact + skip).relu())
        every = unwritten(*exact.shape)
        chain.run(rows_of(x), None, len(every), adds, every)
        # Rounded once, by half a unit in the last place; before that a float32's sum.
        torch.testing.assert_close(every.double(), exact, rtol=EPS / 2 * 1.01, atol=1e-5)
        for count in (1, 5, 13, len(every) // 2):
            pixels, some = torch.randperm(len(every))[:count], unwritten(*exact.shape)
            chain.run(rows_of(x), pixels, count, adds, some)
            assert_same_bits(some[pixels], every[pixels], f"{count} pixels")
            others = torch.ones(len(every), dtype=torch.bool).index_fill(0, pixels, False)
            assert some[others].isnan().all(), "a pixel was written that is not in the list"
            placed, beside = unwritten(count, out), [adds[0].index_select(0, pixels)]
            chain.run(rows_of(x), pixels, count, beside, placed, by_place=True)
            assert_same_bits(placed, every[pixels], f"{count} rows")


@needs_pairs
@pytest.mark.parametrize("streams, size", [(1, (13, 10)), (3, (7, 9)), (2, (3, 1))])
@pytest.mark.parametrize("padding", ((1, 1), (0, 2)), ids=repr)
@pytest.mark.parametrize("behind", (0, 40))
def test_squares(streams, size, padding, behind):
    """A 3x3 goes Winograd's way where floats are multiplied, with the bits of a pixel whatever is in the list."""
    geometry = ((3, 3), (1, 1), padding, (1, 1))
    conv, x = to(BFLOAT16, convolution(64, 32, geometry)), torch.randn(streams, 64, *size).bfloat16()
    exact = to(torch.float64, conv)(x.double())
    window, stages = Window(*geometry, size, tuple(exact.shape[2:])), [Stage(conv, not behind, low=0.0)]
    skip = torch.randn(streams, behind or 32, *exact.shape[2:]).bfloat16()
    if behind:
        stages.append(Stage(to(BFLOAT16, convolution(32, behind)), True, low=0.0))
        exact = to(torch.float64, stages[1].conv)(exact.relu().bfloat16().double())
    exact = rows_of((exact + skip).relu())
    chain, adds, every = fastest(stages, window, poisoned()), [rows_of(skip)], unwritten(*exact.shape)
    assert type(chain) is (Chain if multiplies_pairs(conv) else winograd.Winograd)
    chain.run(rows_of(x), None, len(every), adds, every)
    # As in test_one_stage and test_winograd; and a value between that lies in the middle of two may go to either.
    atol = EPS if behind else 2e-5
    torch.testing.assert_close(every.double(), exact, rtol=EPS / 2 * 1.01, atol=atol)
    for count in {1, len(every) // 2, len(every) - 1}:
        pixels, some = torch.randperm(len(every))[:count].sort().values, unwritten(*exact.shape)
        chain.run(rows_of(x), pixels, count, adds, some)
        assert_same_bits(some[pixels], every[pixels], f"{count} pixels")
        assert some.isnan().sum() == (len(every) - count) * some.shape[1], "pixels that are not in the list"
        placed = unwritten(count, every.shape[1])
        chain.run(rows_of(x), pixels, count, [adds[0].index_select(0, pixels)], placed, by_place=True)
        assert_same_bits(placed, every[pixels], f"{count} rows")


@needs_pairs
@pytest.mark.parametrize("geometry", [WINDOWS[0], WINDOWS[2], WINDOWS[6]], ids=repr)
def test_stages_in_a_row(geometry):
    """Values between two stages are rounded as well."""
    widths = (16, 64, 18, 33, 5)
    x = value = torch.randn(2, widths[0], 19, 23).bfloat16()
    stages = []
    for i, (depth, channels) in enumerate(pairwise(widths)):
        conv = to(BFLOAT16, convolution(depth, channels, WINDOWS[0] if i else geometry))
        stages.append(Stage(conv, False, low=0.0))
        value = to(torch.float64, conv)(value.double()).relu().bfloat16()
    window = None if geometry == WINDOWS[0] else Window(*geometry, x.shape[2:], tuple(value.shape[2:]))
    chain, out = chain_of(stages, window), unwritten(*rows_of(value).shape)
    chain.run(rows_of(x), None, len(out), [], out)
    # A value between that lies in the middle of two may go to either, and three roundings add up.
    torch.testing.assert_close(out, rows_of(value), rtol=2 * EPS, atol=2 * EPS)
    pixels, some = torch.randperm(len(out))[:100].sort().values, unwritten(*out.shape)
    chain.run(rows_of(x), pixels, 100, [], some)
    assert_same_bits(some[pixels], out[pixels], "a list")


@needs_pairs
@pytest.mark.parametrize("geometry", WINDOWS, ids=repr)
@pytest.mark.parametrize("out", (0, 24))
def test_depthwise_and_what_reads_it(geometry, out):
    conv, x = to(BFLOAT16, depthwise(48, geometry)), torch.randn(2, 48, 19, 23).bfloat16()
    value = to(torch.float64, conv)(x.double()).clamp(0, 6)
    window, stages = Window(*geometry, (19, 23), tuple(value.shape[2:])), [Stage(conv, False, 0.0, 6.0)]
    if out:
        stages.append(Stage(to(BFLOAT16, convolution(48, out)), False))
        value = to(torch.float64, stages[-1].conv)(value.bfloat16().double())
    chain, every = chain_of(stages, window), unwritten(*rows_of(value).shape)
    chain.run(rows_of(x), None, len(every), [], every)
    # Rounded once, and before what reads it: a value that lies in the middle of two may go to either.
    atol = 1e-5 if not out else EPS
    torch.testing.assert_close(every.double(), rows_of(value), rtol=EPS / 2 * 1.01, atol=atol)
    pixels, some = torch.randperm(len(every))[:31], unwritten(*every.shape)
    chain.run(rows_of(x), pixels, 31, [], some)
    assert_same_bits(some[pixels], every[pixels], "a list")
    assert some.isnan().sum() == (len(every) - 31) * every.shape[1]


@needs_pairs
@pytest.mark.parametrize("geometry", [*WINDOWS[1:4], WINDOWS[6]], ids=repr)
@pytest.mark.parametrize("out", (0, 24))
@pytest.mark.parametrize("ring", (1, 1 << 18))
def test_strips(monkeypatch, geometry, out, ring):
    """Strips give the bits of both convolutions by themselves."""
    monkeypatch.setattr(residuals, "RING_BYTES", ring)
    x = torch.randn(2, 10, 19, 60).bfloat16()
    wide, window_conv = to(BFLOAT16, convolution(10, 32)), to(BFLOAT16, depthwise(32, geometry))
    first, stages = Stage(wide, False, 0.0, 6.0), [Stage(window_conv, False, 0.0, 6.0)]
    if out:
        stages.append(Stage(to(BFLOAT16, convolution(32, out)), False))
    window = Window(*geometry, (19, 60), tuple(window_conv(wide(x)).shape[2:]))
    middle, count = unwritten(2 * 19 * 60, 32), 2 * window.out_size[0] * window.out_size[1]
    chain_of([first], None).run(rows_of(x), None, len(middle), [], middle)
    expected, together = unwritten(count, out or 32), unwritten(count, out or 32)
    chain_of(stages, window).run(middle, None, count, [], expected)
    strips = Strips(first, stages, window, poisoned())
    strips.run(rows_of(x), None, count, [], together)
    assert_same_bits(together, expected, "all pixels")
    pixels, some = torch.randperm(count)[:100].sort().values, unwritten(*expected.shape)
    strips.run(rows_of(x), pixels, 100, [], some)
    assert_same_bits(some[pixels], expected[pixels], "a list")
    assert some.isnan().sum() == (count - 100) * some.shape[1]


@needs_pairs
@pytest.mark.parametrize("out", (32, 64, 40))
def test_past_the_cache(monkeypatch, out):
    conv, x = to(BFLOAT16, convolution(6, out, WINDOWS[1])), torch.randn(2, 6, 13, 11).bfloat16()
    chain = chain_of([Stage(conv, True, low=0.0)], Window(*WINDOWS[1], (13, 11), (13, 11)))
    found, adds = [], [torch.randn(286, out).bfloat16()]
    # A row that begins at the second number is in no whole line.
    for size, first in ((1 << 30, 0), (0, 0), (0, 1)):
        monkeypatch.setattr(chains, "MORE_THAN_CACHE", size)
        found.append(torch.zeros(286 * out + 1, dtype=BFLOAT16)[first:][: 286 * out].view(286, out))
        chain.run(rows_of(x), None, 286, adds, found[-1])
    assert_same_bits(found[1], found[0], "past the cache")
    assert_same_bits(found[2], found[0], "where no line is whole")


@needs_pairs
def test_what_is_not_a_number_stays():
    conv, x = to(BFLOAT16, convolution(4, 20, WINDOWS[1])), torch.randn(1, 4, 9, 9).bfloat16()
    x[0, 1, 4, 4] = NAN
    for options in ({}, {"low": 0.0}, {"low": -0.25, "high": 0.5}, {"slope": 0.1}):
        chain = chain_of([Stage(conv, False, **options)], Window(*WINDOWS[1], (9, 9), (9, 9)))
        out = torch.zeros(81, 20, dtype=BFLOAT16)
        chain.run(rows_of(x), None, 81, [], out)
        assert torch.equal(out.isnan(), rows_of(conv(x)).isnan())


def bottlenecks():
    """A first convolution of an odd depth, strides, skips, a narrow last map, a tail that only torch knows."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), _Bottleneck(32, 64, 1)),
        *(_Bottleneck(64, 96, 2), nn.Conv2d(96, 48, 1), nn.SiLU(), nn.Conv2d(48, 5, 3, padding=1)),
    )


def inverted_residuals():
    """Both go in strips; behind one of the windows is a convolution to a narrow odd map."""
    widen, window = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 48, 3, 1, 1, groups=48)
    again, strided = nn.Conv2d(24, 32, 1), nn.Conv2d(32, 32, 3, 2, 1, groups=32)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), widen, nn.ReLU6(), window, nn.ReLU6(), nn.Conv2d(48, 24, 1)),
        *(again, nn.ReLU6(), strided, nn.ReLU6(), nn.Conv2d(32, 7, 1)),
    )


class _Bottleneck(nn.Module):
    def __init__(self, depth, channels, stride):
        super().__init__()
        self.a, self.b = nn.Conv2d(depth, 16, 1), nn.Conv2d(16, 16, 3, stride, 1)
        self.c, self.skip = nn.Conv2d(16, channels, 1), nn.Conv2d(depth, channels, 1, stride)

    def forward(self, x):
        return (self.c(self.b(self.a(x).relu()).relu()) + self.skip(x)).relu()


@needs_pairs
@pytest.mark.parametrize("box", (1, 9, 40))
@pytest.mark.parametrize("threshold", (0.0, {"activation": 0.05}), ids=repr)
@pytest.mark.parametrize("network, chained", [(bottlenecks, 8), (inverted_residuals, 3)])
def test_networks(monkeypatch, box, threshold, network, chained):
    """Errors are like the dense network's; without a threshold the bits are those of a fresh model on this frame."""
    torch.manual_seed(box)
    monkeypatch.setattr(join_residuals, "BYTES", 0)
    monkeypatch.setattr(Sparse, "_sparse_seconds", lambda step: 1e-12)  # never dense
    network = network().eval().bfloat16()
    frame = torch.rand(2, 3, 96, 128).bfloat16()
    model = deltaconvert.convert(network, frame, threshold=threshold, backend="cpu")
    chains_of_it = [step for step in model._program.operators if isinstance(step, Convolutions)]
    assert len(chains_of_it) >= chained, "they run as chains"
    model(frame)
    for place in (0, 17, 50):
        frame = frame.clone()
        frame[1, :, place : place + box, place : place + box] = torch.rand(3, box, box)
        output = model(frame)
        assert 0 < model.stats().work < 0.6
        if threshold == 0:
            assert_same_bits(output, model.for_streams(2)(frame), "a network that saw no other frame")
            assert rounding(output, network, [frame]) <= 8 * EPS
    model(frame)
    assert model.stats().work == 0


@pytest.mark.parametrize("lacks", ("pairs", "nothing but AMX beside"))
def test_elsewhere_onednn_multiplies(monkeypatch, lacks):
    vectors = pytest.importorskip("deltaconvert.backends.cpu.native.vectors")
    monkeypatch.setattr(vectors, "MULTIPLIES_PAIRS", lacks != "pairs")
    monkeypatch.setattr(chains, "has_amx", lambda: lacks != "pairs")
    assert not can_chain([convolution(64, 64)], BFLOAT16) and can_chain([convolution(64, 64)], torch.float32)


def test_which_convolutions(monkeypatch):
    vectors = pytest.importorskip("deltaconvert.backends.cpu.native.vectors")
    monkeypatch.setattr(vectors, "MULTIPLIES_PAIRS", True)
    monkeypatch.setattr(vectors, "LANES", 16)
    monkeypatch.setattr(chains, "has_amx", lambda: False)
    assert can_chain([convolution(2, 16), convolution(16, 64)], BFLOAT16)
    assert can_chain([convolution(3, 16), convolution(16, 15)], BFLOAT16), "half a pair, less than a vector"
    assert can_chain([depthwise(32, WINDOWS[1])], BFLOAT16)
    assert not can_chain([depthwise(24, WINDOWS[1])], BFLOAT16), "no whole vectors"
    assert not can_chain([convolution(32, 64)], torch.float16)


@pytest.mark.parametrize("widens", (False, True))
def test_what_is_multiplied(monkeypatch, widens):
    """Where rows are widened bfloat16 goes as float32 does; few channels go along from a vector of factors on."""
    vectors = pytest.importorskip("deltaconvert.backends.cpu.native.vectors")
    monkeypatch.setattr(vectors, "WIDENS", widens)
    monkeypatch.setattr(vectors, "LANES", 16)
    square, narrow = (to(BFLOAT16, convolution(c, n, WINDOWS[1])) for c, n in ((64, 64), (16, 1)))
    assert multiplies_pairs(square) != widens and not multiplies_pairs(convolution(64, 64))
    suits = winograd.suits(Stage(square, False), Window(*WINDOWS[1], (9, 9), (9, 9)))
    assert suits == chains.goes_along(narrow) == widens
