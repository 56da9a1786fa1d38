"""kernels/octets.cu on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from on_cpu import GXX, THREADS, Kernel

from deltaconvert.backends.cuda.marks import bits_of

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 1.0])
@pytest.mark.parametrize("size", [(2, 9, 40), (3, 40, 64)])
def test_octets(size, share):
    torch.manual_seed(0)
    n, height, width = size
    mask = torch.rand(n, 1, height, width) < share
    places, counts = (
        torch.zeros(n * height * width // 8, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int32),
    )
    bits = bits_of(mask)
    kernel = Kernel("octets.cu", "octets", {"TYPE": 1})
    numbers = map(np.int32, (bits.numel(), bits.shape[2], width))
    kernel((3,), THREADS, bits, places, counts, *numbers)
    found = places[: counts[0]].long() & 0xFFFFFFFF
    octets = mask.view(-1, 8)
    expected = {
        place: sum(int(b) << i for i, b in enumerate(octet)) for place, octet in enumerate(octets.tolist())
    }
    assert {int(f) >> 8: int(f) & 255 for f in found} == {p: b for p, b in expected.items() if b}
    assert len(found) == octets.any(1).sum()
