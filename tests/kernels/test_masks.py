"""kernels/masks.cu, sparsify.cu and commit.cu against deltaconvert.reach and the reference: their sources compiled by
g++, run on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from deltaconvert.backends.cuda.listings import Listing, in_levels, spans_of, table_of
from deltaconvert.backends.cuda.marks import Listed, Marks, needed
from deltaconvert.backends.reference import differs
from deltaconvert.ops.resample import Interpolate
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

HERE = Path(__file__).parent
GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run a CUDA source on the CPU")

SIZES = [(1, 1), (3, 2), (8, 8), (7, 9), (13, 21), (2, 33), (3, 70)]
WINDOWS = [  # kernel, stride, padding, dilation
    (1, 1, 0, 1), (1, 2, 0, 1), (2, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (7, 2, 3, 1), (8, 3, 2, 1),
    (9, 1, 4, 1), (3, 1, 2, 2), (2, 1, 3, 1), (11, 4, 5, 1), (32, 2, 16, 1), (33, 1, 16, 1),
    (3, 1, 12, 12), (3, 1, 36, 36), (3, 2, 4, 4), (2, 2, 1, 5), (4, 2, 1, 1), (33, 1, 64, 4),
]  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        library = Path(folder) / "masks.so"
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command = [str(GXX), *flags, "-Wno-unused-parameter", "-shared", "-fPIC"]
        sources = [str(HERE / f"{name}_on_cpu.cpp") for name in ("masks", "sparsify", "commit")]
        subprocess.run([*command, *sources, "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def _call(name: str, *args: object) -> None:
    """Tensors go by their address, integers as int unless they have a type of their own."""
    getattr(_library(), name)(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in args))


def _longs(values) -> list[ctypes.c_longlong]:
    return [ctypes.c_longlong(v) for v in values]


def _empty_marks(streams: int, size: tuple[int, int]) -> Marks:
    poison = torch.full((streams, size[0], -(-size[1] // 32)), -1, dtype=torch.int32)
    return Marks(size, poison, torch.zeros(streams, dtype=torch.int32), 0)


def _marks(mask: Tensor) -> Marks:
    """mask: bool (N, 1, H, W)."""
    marks = _empty_marks(len(mask), tuple(mask.shape[2:]))
    spaced = torch.zeros(len(mask), mask.shape[2], marks.bits.shape[2] * 32, dtype=torch.int64)
    spaced[..., : mask.shape[3]] = mask[:, 0]
    words = (spaced.unflatten(2, (-1, 32)) << torch.arange(32)).sum(-1)
    marks.bits.copy_(torch.where(words >= 2**31, words - 2**32, words))
    marks.changed.copy_(mask.flatten(1).sum(1))
    return marks


def _listing(pairs: list[tuple[Reach, Marks]], size: tuple[int, int], compared: bool = False) -> Listing:
    streams = len(pairs[0][1].bits)
    places = torch.full((streams * size[0] * size[1],), -1, dtype=torch.int32)
    listed = Listed(places, torch.zeros(1, dtype=torch.int32))
    marks = _empty_marks(streams, size)
    return Listing(marks, listed, marks.bits.clone() if compared else marks.bits, pairs)


def _spread(*listings: Listing, then_list: bool = True, kept: int = 1000, alone: bool = True) -> None:
    """By one block, which keeps so many words in shared memory; or by several."""
    table, _ = table_of(in_levels(listings), kept)
    packed = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    args = packed, len(packed) // 8, len(listings), len(listings[0].marks.bits)
    if alone:
        _call("run_spread_alone", *args, then_list)
    else:
        _call("run_spread", *args, 2, then_list)
    if not then_list:
        _call("run_list", *args)


def _check_listing(listing: Listing, expected: Tensor) -> None:
    """expected: the candidates, bool (N, 1, H, W)."""
    count = int(listing.listed.count)
    assert count == expected.sum()
    assert torch.equal(listing.listed.places[:count].sort().values, expected.flatten().nonzero()[:, 0].int())
    assert (listing.listed.places[count:] == -1).all()
    compared = listing.bits is not listing.marks.bits
    marked = torch.zeros_like(expected) if compared else expected
    assert torch.equal(listing.marks.bits, _marks(marked).bits), "bits beside the map stay 0"
    assert torch.equal(listing.marks.changed, marked.flatten(1).sum(1).int())


def _masks(size: tuple[int, int]) -> Tensor:
    """Every single pixel, none, all, and random ones, as streams of one batch."""
    count = size[0] * size[1]
    random = torch.rand(6, count, generator=torch.Generator().manual_seed(count))
    shares = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.95])[:, None]
    one_by_one, none, full = torch.eye(count), torch.zeros(1, count), torch.ones(1, count)
    return torch.cat([one_by_one.bool(), none.bool(), full.bool(), random < shares]).view(-1, 1, *size)


def _check(reach: Reach, mask: Tensor, compared: bool = False) -> None:
    expected = reach.spread(mask)
    for alone in (False, True):
        listing = _listing([(reach, _marks(mask))], tuple(expected.shape[2:]), compared)
        _spread(listing, alone=alone)
        _check_listing(listing, expected)


def _window(k, stride, pad, dilation, size, transposed=False) -> Window | None:
    if transposed:
        out = tuple((side - 1) * stride - 2 * pad + dilation * (k - 1) + 1 for side in size)
    else:
        out = tuple((side + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for side in size)
    square = ((side, side) for side in (k, stride, pad, dilation))
    return Window(*square, size, out, transposed=transposed) if min(out) > 0 else None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k, stride, pad, dilation", WINDOWS)
@pytest.mark.parametrize("transposed", [False, True])
def test_windows(size, k, stride, pad, dilation, transposed):
    window = _window(k, stride, pad, dilation, size, transposed)
    if window is None:
        pytest.skip("no output pixel")
    _check(window, _masks(size)[-16:])


@pytest.mark.parametrize("size", SIZES)
def test_other_reaches(size):
    draw = torch.Generator().manual_seed(1)
    rows, cols = (torch.randint(side, (side + 3, 2), generator=draw) for side in size)
    shifted = Sources(rows[:, :1] - 1, cols[:, :1] - 1)  # -1 lies outside
    for reach in (Pixel(), Everything((2, 3)), Sources(rows, cols), Sources(rows[:, :1], cols), shifted):
        _check(reach, _masks(size)[-16:], compared=isinstance(reach, Pixel))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.5, 2, 8])
def test_stretched_and_moved(size, scale):
    """Tables whose columns lie near each other, or not; some of them outside the map."""
    operator = Interpolate(None, (scale, scale), "bilinear", False, None, False)
    shape = (1, 1, *size)
    (reach,) = operator.reaches([shape], tuple(operator.forward(torch.zeros(shape)).shape))
    assert isinstance(reach, Sources) and spans_of(reach.cols) is not None
    masks = _masks(size)[-10:]  # two pixels, none, all, and some
    _check(reach, masks)
    rows, cols = reach.rows, reach.cols
    moved = Sources(rows, torch.where(cols > 0, cols - 1, -1))
    for other in (moved, Sources(rows.flip(0), cols.flip(0)), Sources(rows, cols * 0)):
        _check(other, masks)


@pytest.mark.parametrize("size", [(17, 45), (40, 64)])
@pytest.mark.parametrize("then_list, kept", [(True, 1000), (False, 1000), (True, 80), (False, 0)])
def test_a_network_in_one_launch(size, then_list, kept):
    """Levels that read each other's masks, inputs that are joined, and a step that compares."""
    mask = torch.rand(3, 1, *size) < torch.tensor([0.0, 0.01, 1.0]).view(3, 1, 1, 1)
    source = _marks(mask)
    same, half = _window(3, 1, 1, 1, size), _window(3, 2, 1, 1, size)
    assert same is not None and half is not None
    first = _listing([(same, source)], size)
    second = _listing([(same, first.marks)], size)
    smaller = _listing([(half, second.marks), (half, source)], half.out_size)
    aside = _listing([(Pixel(), source)], size, compared=True)
    _spread(first, second, smaller, aside, then_list=then_list, kept=kept)
    once = same.spread(mask)
    twice = same.spread(once)
    _check_listing(first, once)
    _check_listing(second, twice)
    _check_listing(smaller, half.spread(twice) | half.spread(mask))
    _check_listing(aside, mask)


def test_an_input_whose_pixels_another_covers_is_not_read():
    source = _marks(torch.zeros(1, 1, 9, 9, dtype=torch.bool))
    wide, narrow = _window(3, 2, 1, 1, (9, 9)), _window(1, 2, 0, 1, (9, 9))
    main, beside = _empty_marks(1, (5, 5)), _empty_marks(1, (5, 5))
    main.seen, beside.seen = (wide, source), (narrow, source)
    for order in ([main, beside], [beside, main]):
        assert [marks for _, marks in needed([(Pixel(), m) for m in order])] == [main]
    beside.seen = (narrow, _empty_marks(1, (9, 9)))
    assert len(needed([(Pixel(), main), (Pixel(), beside)])) == 2


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(2, 3, 5, 33), (1, 9, 4, 6), (3, 1, 1, 1)])
def test_sparsify(shape, threshold):
    n, channels, height, width = shape
    pitch = 4 if channels <= 4 else -(-channels // 4) * 4
    stored = torch.rand(n, height, width, pitch)
    before = stored[..., :channels].permute(0, 3, 1, 2).clone()
    frame = before + 0.5 * torch.rand(shape) * (torch.rand(n, 1, height, width) < 0.3)
    frame[-1, 0, -1, -1], frame[0, -1, 0, 0], frame[0, 0, 0, 0] = torch.nan, torch.inf, -torch.inf
    marks, computed = _empty_marks(n, (height, width)), torch.zeros(1, dtype=torch.int32)
    nonfinite = torch.full((n,), 2**32)
    awake = torch.ones(n, dtype=torch.int32)
    awake[1:2] = 0
    marks.bits[:] = -1
    _call(
        "run_sparsify", frame, *_longs(frame.stride()), stored, pitch, awake, marks.bits, marks.changed, computed,
        nonfinite, n, channels, height, width, ctypes.c_float(threshold),
    )  # fmt: skip
    expected = differs(frame, before, threshold) & awake.view(-1, 1, 1, 1).bool()
    assert torch.equal(marks.bits, _marks(expected).bits)
    assert torch.equal(marks.changed, expected.flatten(1).sum(1).int())
    assert int(computed) == int(awake.sum()) * height * width
    assert torch.equal(nonfinite - 2**32, (expected & ~frame.isfinite().all(1, keepdim=True)).sum((1, 2, 3)))
    assert int(nonfinite[0]) > 2**32
    kept = stored[..., :channels].permute(0, 3, 1, 2)
    assert torch.equal(kept.nan_to_num(7), torch.where(expected, frame, before).nan_to_num(7))


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_commit(threshold):
    n, channels, height, width = shape = 3, 37, 4, 35
    stored = torch.rand(n, height, width, 40)
    before = stored[..., :channels].permute(0, 3, 1, 2).clone()
    fresh = before + 0.5 * torch.rand(shape) * (torch.rand(n, 1, height, width) < 0.6)
    candidates = torch.rand(n, 1, height, width) < 0.5
    places = candidates.flatten().nonzero()[:, 0].int()
    places = places[torch.randperm(len(places))]
    marks, count = _marks(torch.zeros_like(candidates)), torch.tensor([len(places)], dtype=torch.int32)
    _call(
        "run_commit", fresh, *_longs(fresh.stride()), stored, 40, marks.bits, marks.changed, places, count,
        channels, height, width, ctypes.c_float(threshold),
    )  # fmt: skip
    expected = differs(fresh, before, threshold) & candidates
    assert torch.equal(marks.bits, _marks(expected).bits)
    assert torch.equal(marks.changed, expected.flatten(1).sum(1).int())
    assert torch.equal(stored[..., :channels].permute(0, 3, 1, 2), torch.where(expected, fresh, before))
