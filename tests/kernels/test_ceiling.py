"""`choose` of kernels/ceiling.cu against gate.py, on claims as frames seldom make them: equal ones, few, none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from on_cpu import GXX, THREADS, Kernel
from torch import Tensor

from deltaconvert.gate import TILE, WITHIN, Gate, Watch, largest

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run a CUDA source on the CPU")

STREAMS, REFRESH, TICK = 3, 40, 57
GOES, TURN = 1, 2  # as kernels/ceiling.cuh
SIZES = [(1, 1), (100, 17), (150, 330), (70, 600)]


def expected(watch: Watch, claims: Tensor) -> Tensor:
    """The tiles that go, as Watch says it of a frame."""
    asked = claims.clamp(min=0)
    keys = torch.where(asked > 0, watch._of_blocks(asked) + asked * WITHIN, 0.0)
    return ((asked > 0) & largest(keys, watch.most)) | (claims < 0)


def in_slots(tiles: Tensor, words: int, beside: float) -> Tensor:
    """A row of tiles has two for each word of a mask; the last one may lie beside the frame."""
    slots = torch.full((*tiles.shape[:-1], 2 * words), beside, dtype=tiles.dtype)
    slots[..., : tiles.shape[-1]] = tiles
    return slots[:, 0].contiguous()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.03, 0.2, 0.7])
@pytest.mark.parametrize("steps", [1, 3, 1000])  # that claims have: 1 is a lamp, by which all are equal
def test_what_goes(size, dtype, share, steps):
    draw = torch.Generator().manual_seed(steps)
    watch = Watch(
        Gate(max_density=share, refresh=REFRESH), (STREAMS, 1, *size), dtype, torch.device("cpu"), 0.1
    )
    shape = (STREAMS, 1, *watch.tiles)
    claims = torch.randint(1, steps + 1, shape, generator=draw).to(dtype) * 0.37
    claims[torch.rand(shape, generator=draw) < torch.tensor([0.0, 0.5, 0.95]).view(-1, 1, 1, 1)] = 0
    claims[torch.rand(shape, generator=draw) < 0.02] = -1
    pixels = torch.randint(1, TILE**2 + 1, shape, generator=draw, dtype=torch.int32)
    watch.age.copy_(torch.randint(0, 5, shape, generator=draw))
    goes, turns = expected(watch, claims), (watch._turn == TICK % REFRESH).expand(shape)
    waits = (claims > 0) & ~goes
    age = torch.where(waits, watch.age + 1, 0.0)
    watch.ticks.fill_(TICK)
    watch.awake[1] = 0

    words = -(-size[1] // 32)
    count = watch.tiles[0] * 2 * words
    choice = torch.full((STREAMS, watch.tiles[0], 2 * words), 255, dtype=torch.uint8)
    changed, before = torch.full((STREAMS,), -7, dtype=torch.int32), watch.age.clone()
    leads = torch.full(choice.shape, float("nan"), dtype=dtype)
    macros = {"TYPE": int(dtype == torch.float32), "KEYS": -(-count // THREADS)}
    numbers = [np.int32(number) for number in (*size, watch.most, watch.block, REFRESH)]
    arrays = in_slots(claims, words, 0), in_slots(pixels, words, 0), leads, watch.age, choice, changed
    Kernel("ceiling.cu", "choose", macros)((1, STREAMS), THREADS, watch.awake, *arrays, watch.ticks, *numbers)

    ours = choice[:, None, :, : watch.tiles[1]]
    for stream in (0, 2):
        assert torch.equal(ours[stream] & GOES != 0, goes[stream])
        assert torch.equal(ours[stream] & TURN != 0, turns[stream])
        assert not choice[stream, :, watch.tiles[1] :].any(), "beside the frame"
        assert torch.equal(watch.age[stream], age[stream])
        assert changed[stream] == pixels[stream][goes[stream] | turns[stream]].sum()
        counted = goes[stream] & (claims[stream] > 0)
        assert counted.sum() == min(watch.most, int((claims[stream] > 0).sum()))
    assert (choice[1] == 255).all() and changed[1] == -7 and torch.equal(watch.age[1], before[1]), "it sleeps"
