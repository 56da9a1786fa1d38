"""kernels/masks.cu against deltaconvert.reach, its own source compiled by g++ and run on the CPU."""

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

from deltaconvert.backends.cuda import Marks, pack
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

HERE = Path(__file__).parent
GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run a CUDA source on the CPU")

SIZES = [(1, 1), (3, 2), (8, 8), (7, 9), (13, 21), (2, 33)]
WINDOWS = [  # kernel, stride, padding, dilation
    (1, 1, 0, 1), (1, 2, 0, 1), (2, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (7, 2, 3, 1), (8, 3, 2, 1),
    (9, 1, 4, 1), (3, 1, 2, 2), (2, 1, 3, 1), (11, 4, 5, 1),
]  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        library = Path(folder) / "masks.so"
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command = [str(GXX), *flags, "-Wno-unused-parameter", "-shared", "-fPIC"]
        subprocess.run([*command, str(HERE / "masks_on_cpu.cpp"), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def _candidates(reach: Reach, mask: Tensor, out_size: tuple[int, int]) -> Tensor:
    marks = Marks(mask, mask.flatten(1).sum(1).to(torch.int32))
    packed, _tables = pack(reach, marks)
    out = torch.full((len(mask), 1, *out_size), 7, dtype=torch.uint8)
    _library().run_reads_change(packed, ctypes.c_void_p(out.data_ptr()), len(mask), *out_size)
    return out


def _masks(size: tuple[int, int]) -> Tensor:
    """Every single pixel, none, all, and random ones, as streams of one batch."""
    count = size[0] * size[1]
    random = torch.rand(6, count, generator=torch.Generator().manual_seed(count))
    shares = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.95])[:, None]
    one_by_one, none, full = torch.eye(count), torch.zeros(1, count), torch.ones(1, count)
    return torch.cat([one_by_one.bool(), none.bool(), full.bool(), random < shares]).view(-1, 1, *size)


def _check(reach: Reach, mask: Tensor) -> None:
    expected = reach.spread(mask)
    got = _candidates(reach, mask, tuple(expected.shape[2:]))
    assert torch.equal(got, expected.to(torch.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k, stride, pad, dilation", WINDOWS)
@pytest.mark.parametrize("transposed", [False, True])
def test_windows(size, k, stride, pad, dilation, transposed):
    if transposed:
        out = tuple((side - 1) * stride - 2 * pad + dilation * (k - 1) + 1 for side in size)
    else:
        out = tuple((side + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for side in size)
    if min(out) < 1:
        pytest.skip("no output pixel")
    square = ((side, side) for side in (k, stride, pad, dilation))
    _check(Window(*square, size, out, transposed=transposed), _masks(size))


@pytest.mark.parametrize("size", SIZES)
def test_other_reaches(size):
    draw = torch.Generator().manual_seed(1)
    rows, cols = (torch.randint(side, (side + 3, 2), generator=draw) for side in size)
    shifted = Sources(rows[:, :1] - 1, cols[:, :1] - 1)  # -1 lies outside
    for reach in (Pixel(), Everything((2, 3)), Sources(rows, cols), Sources(rows[:, :1], cols), shifted):
        _check(reach, _masks(size))
