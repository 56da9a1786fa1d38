"""Chains of convolutions on lists of pixels, beside torch; and the step that runs them, beside the reference."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from chained import NAN, WINDOWS, chain_of, convolution, depthwise, rows_of
from oracle import Call, assert_close, assert_same_bits, check_operator
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import chains
from deltaconvert.backends.cpu.chains import Stage
from deltaconvert.backends.cpu.native import loops
from deltaconvert.reach import Window

pytestmark = pytest.mark.skipif(not loops.FOUND, reason="numba is not installed")
AFTER = {  # what a stage does to its sum, and the same by torch
    "nothing": ({}, lambda x: x),
    "relu": ({"low": 0.0}, torch.relu),
    "relu6": ({"low": 0.0, "high": 6.0}, F.relu6),
    "hardtanh": ({"low": -0.25, "high": 0.5}, lambda x: x.clamp(-0.25, 0.5)),
    "leaky": ({"slope": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
}


@pytest.mark.parametrize("geometry", WINDOWS, ids=repr)
@pytest.mark.parametrize(
    "channels, out, after",
    [
        *((1, 1, "relu"), (3, 20, "nothing"), (8, 7, "relu"), (4, 12, "relu6"), (5, 16, "hardtanh")),
        *((33, 24, "leaky"), (16, 41, "relu"), (7, 96, "leaky"), (32, 1, "relu"), (64, 3, "leaky")),
    ],
)
def test_one_stage(geometry, channels, out, after):
    options, activation = AFTER[after]
    conv = convolution(channels, out, geometry, bias=after != "relu")
    for streams, size in ((1, (13, 10)), (3, (7, 9)), (2, (8, 5))):
        x = torch.randn(streams, channels, *size)
        expected = conv(x)
        skip = torch.randn_like(expected) if after in ("relu", "nothing") else None
        expected = rows_of(activation(expected if skip is None else expected + skip))
        window = Window(*geometry, size, tuple(conv(x).shape[2:]))
        pointwise = geometry == WINDOWS[0]
        chain = chain_of([Stage(conv, skip is not None, **options)], None if pointwise else window)
        adds = [] if skip is None else [rows_of(skip)]
        every = torch.full_like(expected, NAN)
        chain.run(rows_of(x), None, len(every), adds, every)
        # Sums of up to 600 products of magnitude 1, in another order than oneDNN's.
        torch.testing.assert_close(every, expected, rtol=1e-5, atol=1e-5)
        for count in (1, 5, 7, len(every) // 2):
            pixels = torch.randperm(len(every))[:count]
            some = torch.full_like(expected, NAN)
            chain.run(rows_of(x), pixels, count, adds, some)
            assert_same_bits(some[pixels], every[pixels], f"{count} pixels")
            others = torch.ones(len(every), dtype=torch.bool).index_fill(0, pixels, False)
            assert some[others].isnan().all(), "a pixel was written that is not in the list"
            placed = torch.full((count, out), NAN)
            beside = [rows.index_select(0, pixels) for rows in adds]
            chain.run(rows_of(x), pixels, count, beside, placed, by_place=True)
            assert_same_bits(placed, every[pixels], f"{count} rows")


@pytest.mark.parametrize("widths", [(3, 20, 6), (16, 64, 16, 33), (5, 40, 1, 24)], ids=repr)
@pytest.mark.parametrize("geometry", [WINDOWS[0], WINDOWS[2], WINDOWS[6]], ids=repr)
def test_stages_in_a_row(widths, geometry):
    x = torch.randn(2, widths[0], 19, 23)
    convs = [convolution(a, b, WINDOWS[0] if i else geometry) for i, (a, b) in enumerate(pairwise(widths))]
    skips, value, stages = [], x, []
    for i, conv in enumerate(convs):
        value = conv(value)
        adds = i != 1
        if adds:
            skips.append(torch.randn_like(value))
            value = value + skips[-1]
        value = value.relu()
        stages.append(Stage(conv, adds, low=0.0))
    window = None if geometry == WINDOWS[0] else Window(*geometry, x.shape[2:], value.shape[2:])
    chain, out = chain_of(stages, window), torch.full_like(rows_of(value), NAN)
    chain.run(rows_of(x), None, len(out), [rows_of(skip) for skip in skips], out)
    torch.testing.assert_close(out, rows_of(value), rtol=1e-5, atol=1e-5)  # as above
    pixels = torch.randperm(len(out))[:100].sort().values
    some = torch.full_like(out, NAN)
    chain.run(rows_of(x), pixels, 100, [rows_of(skip) for skip in skips], some)
    assert_same_bits(some[pixels], out[pixels], "a list")


@pytest.mark.parametrize("geometry", WINDOWS, ids=repr)
@pytest.mark.parametrize("channels, out", [(3, 0), (8, 5), (20, 24), (45, 0)])
def test_depthwise_and_what_reads_it(geometry, channels, out):
    conv, x = depthwise(channels, geometry), torch.randn(2, channels, 19, 23)
    value = F.relu6(conv(x))
    window, stages = Window(*geometry, (19, 23), tuple(value.shape[2:])), [Stage(conv, False, 0.0, 6.0)]
    if out:
        stages.append(Stage(convolution(channels, out), False))
        value = stages[-1].conv(value)
    chain, every = chain_of(stages, window), torch.full_like(rows_of(value), NAN)
    chain.run(rows_of(x), None, len(every), [], every)
    torch.testing.assert_close(every, rows_of(value), rtol=1e-5, atol=1e-5)  # as above
    pixels, some = torch.randperm(len(every))[:31], torch.full_like(every, NAN)
    chain.run(rows_of(x), pixels, 31, [], some)
    assert_same_bits(some[pixels], every[pixels], "a list")
    assert some.isnan().sum() == (len(every) - 31) * every.shape[1]


@pytest.mark.parametrize("out", (5, 24))
@pytest.mark.parametrize("threads", (1, 2))
def test_limits(out, threads):
    before, conv = torch.get_num_threads(), convolution(6, out, WINDOWS[1])
    x = torch.randn(2, 6, 21, 17)
    rows = rows_of(conv(x))
    chain = chain_of([Stage(conv, False)], Window(*WINDOWS[1], (21, 17), (21, 17)))
    limits = 0.2 * torch.rand(out)
    stored = rows + 0.15 * torch.randn_like(rows) * (torch.rand(len(rows), 1) < 0.5)
    stored[3] = NAN
    pixels = torch.arange(0, len(rows), 3)
    moved = torch.zeros(len(rows), dtype=torch.bool)
    moved[pixels] = ((stored - rows).abs() <= limits).logical_not().any(1)[pixels]
    marks, found = torch.zeros_like(moved), stored.clone()
    torch.set_num_threads(threads)
    try:
        chain.run(rows_of(x), pixels, len(pixels), [], found, limits=limits, marks=marks)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(marks, moved) and moved.any() and not moved[pixels].all()
    torch.testing.assert_close(found[moved], rows[moved], rtol=1e-5, atol=1e-5)  # as above
    assert_same_bits(found[~moved], stored[~moved], "what did not move")


@pytest.mark.parametrize("out", (32, 48, 40))
def test_past_the_cache(monkeypatch, out):
    window, x = Window(*WINDOWS[1], (13, 11), (13, 11)), torch.randn(2, 5, 13, 11)
    chain = chain_of([Stage(convolution(5, out, WINDOWS[1]), True, low=0.0)], window)
    adds = [torch.randn(286, out)]
    for pixels, count in ((None, 286), (torch.arange(0, 286, 3), 96)):
        found = []
        # A row that begins at the second float is in no whole line.
        for size, first in ((1 << 30, 0), (0, 0), (0, 1)):
            monkeypatch.setattr(chains, "MORE_THAN_CACHE", size)
            found.append(torch.zeros(286 * out + 1)[first:][: 286 * out].view(286, out))
            chain.run(rows_of(x), pixels, count, adds, found[-1])
        assert_same_bits(found[1], found[0], "past the cache")
        assert_same_bits(found[2], found[0], "where no line is whole")


def test_any_number_of_threads():
    before, window = torch.get_num_threads(), Window(*WINDOWS[1], (31, 37), (31, 37))
    chain = chain_of(
        [Stage(depthwise(21, WINDOWS[1]), False), Stage(convolution(21, 40), False, low=0.0)], window
    )
    rows, found = torch.randn(31 * 37, 21), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for pixels in (None, torch.arange(31 * 37)):
            found.append(torch.full((31 * 37, 40), NAN))
            chain.run(rows, pixels, 31 * 37, [], found[-1])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert_same_bits(found[0], other, "more threads")


def test_what_is_not_a_number_stays():
    conv, x = convolution(4, 20, WINDOWS[1]), torch.randn(1, 4, 9, 9)
    x[0, 1, 4, 4] = NAN
    for options, activation in AFTER.values():
        chain = chain_of([Stage(conv, False, **options)], Window(*WINDOWS[1], (9, 9), (9, 9)))
        out = torch.zeros(81, 20)
        chain.run(rows_of(x), None, 81, [], out)
        assert torch.equal(out.isnan(), rows_of(activation(conv(x))).isnan())


NETWORKS = {
    "strides": lambda: nn.Sequential(
        nn.Conv2d(3, 20, 7, 2, 3), nn.ReLU(), nn.Conv2d(20, 9, 3, 2), nn.LeakyReLU(0.2)
    ),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3, 1, 4, 4), nn.ReLU6(), nn.Conv2d(24, 1, (3, 1), 1, (1, 0))
    ),
    "only padding": lambda: nn.Sequential(nn.Conv2d(3, 8, 2, 1, 4), nn.Hardtanh(-0.5, 2)),
    "joined": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 30, 1), nn.ReLU(), nn.Conv2d(30, 4, 1)
    ),
    "depthwise": lambda: nn.Sequential(
        *(
            nn.Conv2d(3, 36, 1),
            nn.ReLU6(),
            nn.Conv2d(36, 36, 3, 2, 1, groups=36),
            nn.ReLU6(),
            nn.Conv2d(36, 5, 1),
        ),
        *(nn.Conv2d(5, 5, 3, 1, 1, groups=5), nn.LeakyReLU(0.1), nn.Conv2d(5, 5, 3, groups=5), nn.SiLU()),
    ),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 16, 3, groups=4), nn.ReLU()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    check_operator(NETWORKS[name](), (2, 3, 21, 18), dtype=torch.float32, threshold=0.1, backend="cpu")


def test_bottleneck():
    module = Call(
        lambda m, x: m.act(m.c(m.act(m.b(m.act(m.a(x))))) + m.skip(x)),
        a=nn.Conv2d(3, 17, 1),
        b=nn.Conv2d(17, 17, 3, 2, 1),
        c=nn.Conv2d(17, 40, 1),
        skip=nn.Conv2d(3, 40, 1, 2),
        act=nn.ReLU(),
    )
    check_operator(module, (2, 3, 22, 19), dtype=torch.float32, threshold=0.1, backend="cpu")


@pytest.mark.parametrize("amount", ({"activation": 0.2}, {"activation": "20%"}), ids=repr)
def test_thresholds_at_activations(amount):
    """Masks are those of the reference, except where a value equals the threshold up to rounding."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 20, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(20, 24, 1),
        nn.ReLU6(),
        nn.Conv2d(24, 7, 3, 2, 1),
        nn.ReLU(),
    ).eval()
    frames = [torch.randn(2, 3, 18, 21)]
    for _ in range(4):
        frames.append(frames[-1] + 0.3 * torch.randn(2, 3, 18, 21) * (torch.rand(2, 1, 18, 21) < 0.1))
    reference, mine = (
        deltaconvert.convert(module, frames[0], threshold=amount, backend=backend)
        for backend in ("reference", "cpu")
    )
    for frame in frames:
        # Sums in another order.
        torch.testing.assert_close(mine(frame), reference(frame), rtol=1e-4, atol=1e-5)
        for (path, expected), found in zip(reference.masks().items(), mine.masks().values(), strict=True):
            assert torch.equal(found, expected), path


@pytest.mark.parametrize("behind", [nn.ReLU(), nn.Threshold(0.1, 0.5)])
def test_changes_that_no_output_reads(behind):
    """A stride steps over these changes; what follows the convolution in its step is compiled or run by torch."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), behind, nn.Conv2d(4, 2, 3, padding=1)).eval()
    frame = torch.randn(1, 3, 12, 14)
    model = deltaconvert.convert(network, frame, backend="cpu")
    for place in ((5, 6), (6, 7), (4, 4)):
        frame = frame.clone()
        frame[:, :, place[0], place[1]] += 1
        model(frame)
        assert_close(model(frame), network(frame).detach())


class _Denoises(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x - self.conv(x)


@pytest.mark.parametrize("channels", (1, 6, 32))
def test_what_it_is_taken_from(channels):
    """A convolution is subtracted from a map in one step, with the same bits."""
    network = _Denoises(channels).eval()
    frame = torch.rand(1, channels, 17, 21)
    together = deltaconvert.convert(network, frame, backend="cpu")
    alone = deltaconvert.convert(network.conv, frame, backend="cpu")
    (step,) = together._program.operators
    assert step._direct, "a chain stores its rows itself"
    for place in (0, 5):
        frame = frame.clone()
        frame[:, :, place : place + 3, 4:9] = torch.rand(1, channels, 3, 5)
        assert_same_bits(together(frame), frame - alone(frame), f"box at {place}")
