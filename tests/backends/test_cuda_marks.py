"""backends/cuda/marks.py: windows behind each other are seen as one. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.backends.cuda.marks import WIDEST, Marks, needed, seen_from
from deltaconvert.reach import Pixel, Reach, Window


def window(kernel: int, stride: int, size: tuple[int, int], padding: int | None = None) -> Window:
    padding = kernel // 2 if padding is None else padding
    out = [(side + 2 * padding - kernel) // stride + 1 for side in size]
    return Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), size, (out[0], out[1]))


def marks(size: tuple[int, int], seen: tuple[Window, Marks] | None = None) -> Marks:
    return Marks(size, torch.zeros(0), torch.zeros(0), 0, seen=seen)


@pytest.mark.parametrize("size", [(9, 14), (8, 7), (1, 5)])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2), (1, 2)])
def test_the_pixels_of_both(size, kernel, stride):
    first = marks(size)
    inner = window(3, 1, size)
    outer = window(kernel, stride, size)
    reach, source = seen_from(outer, marks(size, (inner, first)))
    assert source is first
    for seed in range(20):
        mask = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed)) < 0.08
        assert torch.equal(reach.spread(mask), outer.spread(inner.spread(mask)))


def test_not_through_a_map_of_another_size_nor_a_wide_window():
    size = (9, 14)
    strided, cut = window(3, 2, (18, 28)), window(3, 1, (11, 16), padding=0)
    for inner in (strided, cut, window(WIDEST, 1, size)):
        between = marks(size, (inner, marks(inner.in_size)))
        outer = window(3, 1, size)
        assert seen_from(outer, between) == (outer, between)


@pytest.mark.parametrize("inner", [1, 3, 5, 7])
def test_a_shortcut_with_stride_needs_no_look_of_its_own(inner):
    """Beside the 3x3 convolution that makes the block's marks, however these were seen."""
    size = (9, 14)
    first, block, shortcut = marks(size), window(3, 2, size), window(1, 2, size)
    between = marks(size, (window(inner, 1, size), first))
    made = marks(block.out_size, seen_from(block, between))
    pixel: tuple[Pixel, Marks] = (Pixel(), made)
    for pairs in ([pixel, (shortcut, between)], [(shortcut, between), pixel]):
        assert needed(pairs) == [pixel]
    wider, compared = window(5, 2, size), marks(block.out_size)
    for pairs in ([pixel, (wider, between)], [(Pixel(), compared), (shortcut, between)]):
        assert needed(pairs) == pairs


def test_a_residual_beside_a_window_on_the_same_pixels_needs_no_look_of_its_own():
    """x + conv1x1(conv3x3(x)) in one kernel: the window sees what the residual does. Not where another map is added,
    nor where what the window sees is smaller than the map."""
    size = (9, 14)
    first, other, seen = marks(size), marks(size), window(3, 1, size)
    for pairs in ([(seen, first), (Pixel(), first)], [(Pixel(), first), (seen, first)]):
        assert needed(pairs) == [(seen, first)]
    apart: list[tuple[Reach, Marks]] = [(seen, first), (Pixel(), other)]
    assert needed(apart) == apart
    ahead = Window((2, 2), (1, 1), (0, 0), (2, 2), size, (7, 12))
    assert len(needed([(ahead, first), (Pixel(), first)])) == 2
