"""kernels/masks.cu against deltaconvert.reach, its own source compiled by g++ and run on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaconvert.reach import Window

HERE = Path(__file__).parent
GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run a CUDA source on the CPU")

Words = NDArray[np.uint64]
SIZES = [(1, 1), (3, 2), (8, 8), (7, 9), (9, 7), (16, 8), (13, 21), (17, 40), (24, 25)]
WINDOWS = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 1), (5, 2), (7, 3), (11, 5)]  # kernel, padding
GRIDS = [(1, 1), (2, 32), (64, 64)]  # fewer and more threads than there are tiles


@cache
def _library(k: int = 3, pad: int = 1) -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        library = Path(folder) / "masks.so"
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command = [str(GXX), *flags, f"-DK={k}", f"-DPAD={pad}", "-shared", "-fPIC"]
        subprocess.run([*command, str(HERE / "masks_on_cpu.cpp"), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def _run(kernel: str, grid: tuple[int, int], *args: NDArray | int, k: int = 3, pad: int = 1) -> None:
    passed = [a if isinstance(a, int) else ctypes.c_void_p(a.ctypes.data) for a in args]
    getattr(_library(k, pad), f"run_{kernel}")(*grid, *passed)


def _tiles(pixels: int) -> int:
    return -(-pixels // 8)


def _pack(mask: Tensor) -> Words:
    """bool (N, 1, H, W) -> uint64 (N, TY, TX); word (ty, tx), bit y * 8 + x."""
    n, _, h, w = mask.shape
    padded = np.zeros((n, _tiles(h) * 8, _tiles(w) * 8), bool)
    padded[:, :h, :w] = mask[:, 0].numpy()
    tiles = padded.reshape(n, _tiles(h), 8, _tiles(w), 8).transpose(0, 1, 3, 2, 4)
    return np.packbits(tiles.reshape(n, _tiles(h), _tiles(w), 64), axis=-1, bitorder="little").view("<u8")[
        ..., 0
    ]


def _masks(size: tuple[int, int]) -> Tensor:
    """Every single pixel, none, all, and random ones, as streams of one batch."""
    count = size[0] * size[1]
    random = torch.rand(6, count, generator=torch.Generator().manual_seed(count))
    shares = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.95])[:, None]
    rows = [
        torch.eye(count, dtype=torch.bool),
        torch.zeros(1, count).bool(),
        torch.ones(1, count).bool(),
        random < shares,
    ]
    return torch.cat(rows).view(-1, 1, *size)


def _window(k: int, stride: int, pad: int, size: tuple[int, int]) -> Window:
    out = tuple((side + 2 * pad - k) // stride + 1 for side in size)
    return Window((k, k), (stride, stride), (pad, pad), (1, 1), size, (out[0], out[1]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", SIZES)
def test_dilate3x3_is_the_spread_of_a_window(size, grid):
    mask = _masks(size)
    words = _pack(mask)
    out = np.full_like(words, 0xDEAD)
    _run("dilate3x3", grid, words, out, len(mask), *size)
    assert (out == _pack(_window(3, 1, 1, size).spread(mask))).all()


@pytest.mark.parametrize(
    "size, k, pad", [(s, k, p) for s in SIZES for k, p in WINDOWS if min(s) + 2 * p >= k]
)
def test_shrink2_is_the_spread_of_a_window(size, k, pad):
    window = _window(k, 2, pad, size)
    mask = _masks(size)
    expected = window.spread(mask)
    if window.orphans is not None:  # pixels that see nothing but padding are the engine's, not this kernel's
        expected &= ~window.orphans
    for grid in GRIDS:
        out = np.full((len(mask), *map(_tiles, window.out_size)), 0xDEAD, np.uint64)
        _run("shrink2", grid, _pack(mask), out, len(mask), *size, *window.out_size, k=k, pad=pad)
        assert (out == _pack(expected)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_list_tiles_appends_each_tile_that_is_not_empty_once(grid):
    words = _pack(_masks((13, 21)))
    expected = np.flatnonzero(words)
    listed, count = np.full(words.size + 2, -1, np.int32), np.array([2], np.int32)
    _run("list_tiles", grid, words, listed, count, words.size)
    assert count[0] == 2 + len(expected)
    assert (listed[:2] == -1).all()
    assert (listed[count[0] :] == -1).all()
    assert sorted(listed[2 : count[0]]) == expected.tolist()
