"""reach.py against brute force: one input pixel of the dense operator is changed to see which outputs move."""

import pytest
import torch
from drawn import pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import examples

from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.pad import Pad
from deltaconvert.ops.places import Crop, Flip, Roll
from deltaconvert.ops.pool import AvgPool2d, MaxPool2d
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate


def moved_by_each_pixel(operator, size, channels, dtype=torch.float64):
    """bool (H * W, 1, H', W'): for each input pixel, the output pixels that move when it goes up or down."""
    count = size[0] * size[1]
    base = torch.rand(1, channels, *size, dtype=dtype).repeat(count, 1, 1, 1)
    pixels = torch.eye(count, dtype=dtype).view(count, 1, *size)
    before = operator(base)
    return sum((operator(base + sign * 9.37 * pixels) != before).any(1, keepdim=True) for sign in (1, -1)) > 0


def spread_of_each_pixel(operator, size, channels):
    shape = (size[0] * size[1], channels, *size)
    out_shape = tuple(operator(torch.zeros(shape, dtype=torch.float64)).shape)
    (reach,) = operator.reaches([shape], out_shape)
    masks = torch.eye(shape[0], dtype=torch.bool).view(shape[0], 1, *size)
    check_boxes(reach, reach.spread(masks) if size != (1, 1) else None, size)
    ones = reach.spread(torch.ones_like(masks))
    assert ones.shape == (shape[0], 1, *out_shape[2:]) and ones.all(), "a mask of ones stays a mask of ones"
    assert not reach.spread(torch.zeros_like(masks)).any(), "nothing comes from nothing"
    return reach.spread(masks)


def check_boxes(reach, spread, size):
    """The input box that a box of output pixels reads contains every pixel that spreads to it."""
    if spread is None:  # one pixel is the whole map
        return
    rows, columns = spread.shape[2:]
    for box in (((0, rows), (0, columns)), ((rows // 2, rows), (0, 1)), ((0, 1), (columns // 2, columns))):
        read = reach.reads(box)
        seen = spread[:, 0, slice(*box[0]), slice(*box[1])].flatten(1).any(1).view(size)
        inside = torch.zeros_like(seen)
        if read is None:
            inside[:] = True
        else:
            assert all(0 <= span[0] <= span[1] <= side for span, side in zip(read, size, strict=True))
            inside[slice(*read[0]), slice(*read[1])] = True
        assert not (seen & ~inside).any(), (box, read)


def check_equal(operator, size, channels=1):
    moved = moved_by_each_pixel(operator, size, channels)
    spread = spread_of_each_pixel(operator, size, channels)
    if size != (1, 1):  # in a map of one pixel, what reads only padding follows that pixel
        assert torch.equal(moved, spread)
    assert not (moved & ~spread).any()


def legal(operator, size, channels):
    try:
        return 0 not in operator(torch.zeros(1, channels, *size, dtype=torch.float64)).shape
    except RuntimeError:
        return False


SETTINGS = dict(
    kernel=pairs(1, 4), stride=pairs(1, 4), padding=pairs(0, 3), dilation=pairs(1, 3), size=pairs(1, 8)
)


@settings(max_examples=examples(60))
@given(groups=st.sampled_from([1, 2]), **SETTINGS)
def test_convolution(kernel, stride, padding, dilation, size, groups):
    operator = Conv2d(torch.randn(4, 2 // groups, *kernel).double(), None, stride, padding, dilation, groups)
    if legal(operator, size, 2):
        check_equal(operator, size, 2)


@settings(max_examples=examples(60))
@given(extra=pairs(0, 2), groups=st.sampled_from([1, 2]), **SETTINGS)
def test_transposed_convolution(kernel, stride, padding, dilation, size, extra, groups):
    weight = torch.randn(2, 4 // groups, *kernel).double()
    operator = ConvTranspose2d(weight, None, stride, padding, extra, groups, dilation)
    if legal(operator, size, 2):
        check_equal(operator, size, 2)


@settings(max_examples=examples(60))
@given(ceil=st.booleans(), average=st.booleans(), **SETTINGS)
def test_pools(kernel, stride, padding, dilation, size, ceil, average):
    operator = MaxPool2d(kernel, stride, padding, dilation, ceil)
    if average:
        operator = AvgPool2d(kernel, stride, padding, ceil, True, None)
    if legal(operator, size, 1):
        check_equal(operator, size)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@settings(max_examples=examples(12))
@given(
    size=pairs(2, 7), target=pairs(1, 12), scale=st.sampled_from([None, 2.0, 0.6, 1.7]), align=st.booleans()
)
def test_interpolation(mode, size, target, scale, align):
    """The tables are right for both precisions: they hold what either of them reads, and no more."""
    align = align if mode in ("bilinear", "bicubic") else None
    operator = Interpolate(None if scale else target, scale, mode, align, None, False)
    moved = moved_by_each_pixel(operator, size, 1) | moved_by_each_pixel(operator, size, 1, torch.float32)
    spread = spread_of_each_pixel(operator, size, 1)
    assert not (moved & ~spread).any()
    # Rows and columns are looked up separately: rounding may hide a tiny weight in one and not in their product.
    assert torch.equal(moved, spread) or mode == "bicubic"


sides = st.tuples(*[st.integers(-2, 3)] * 4)


@settings(max_examples=examples(40))
@given(size=pairs(1, 7), pads=sides, mode=st.sampled_from(["constant", "reflect", "replicate", "circular"]))
def test_padding(size, pads, mode):
    operator = Pad(pads, mode, 2.0 if mode == "constant" else None)
    if legal(operator, size, 1) and (mode != "circular" or min(pads) >= 0):
        check_equal(operator, size)


@settings(max_examples=examples(20))
@given(size=pairs(1, 7), start=pairs(-3, 3), step=pairs(1, 3), shifts=pairs(-9, 9))
def test_places(size, start, step, shifts):
    crop = Crop(*((a, None, s) for a, s in zip(start, step, strict=True)), (None, None, None))
    for operator in (crop, Roll(shifts, (2, -1)), Flip((2, 3)), Flip((-1,))):
        if legal(operator, size, 1):
            check_equal(operator, size)


@settings(max_examples=examples(20))
@given(size=pairs(2, 7), target=pairs(1, 9), kind=st.sampled_from(["avg", "max"]))
def test_adaptive_pools(size, target, kind):
    check_equal(AdaptivePool2d(kind, target), size)


@pytest.mark.parametrize("antialias_mode", ["bilinear", "bicubic"])
def test_antialias(antialias_mode):
    operator = Interpolate((13, 4), None, antialias_mode, False, None, True)
    moved, spread = moved_by_each_pixel(operator, (6, 3), 1), spread_of_each_pixel(operator, (6, 3), 1)
    assert not (moved & ~spread).any()
