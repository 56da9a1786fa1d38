"""kernels/conv_wgmma.cu on the CPU: each way to walk a list, whose warps wait for each other at barriers."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from on_cpu import GXX, HERE, edge_of

from deltaconvert.backends.cuda import convs
from deltaconvert.backends.cuda.marks import bits_of, list_of
from deltaconvert.backends.cuda.tail import Tail, device_bytes
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
DTYPE, CPU = torch.bfloat16, torch.device("cpu")


def library(folder: Path, macros: dict) -> ctypes.CDLL:
    """conv_wgmma.cu with other instructions in place of wgmma.cuh."""
    for file in (HERE.parents[1] / "kernels").glob("*.cu*"):
        text = re.sub(r"\basm(?: volatile)?\(", "ASSEMBLY(", file.read_text())
        text = text.replace("extern __shared__ __align__(1024) char memory[];", "")  # there is one for all
        (folder / file.name).write_text(text)
    (folder / "wgmma.cuh").write_text((HERE / "wgmma_on_cpu.h").read_text())
    options = [f"-D{name}={' '.join(str(text).split())}" for name, text in macros.items()]
    source = [f'-DSOURCE="{folder / "conv_wgmma.cu"}"', str(HERE / "wgmma_kernel_on_cpu.cpp")]
    command = [str(GXX), "-std=c++17", "-O2", "-fPIC", "-shared", "-w", *options, *source]
    subprocess.run([*command, "-o", str(folder / "so")], check=True)
    return ctypes.CDLL(str(folder / "so"))


def marks(n: int, height: int, width: int) -> SimpleNamespace:
    bits = torch.zeros(n, height, -(-width // 32), dtype=torch.int32)
    return SimpleNamespace(bits=bits, changed=torch.zeros(n, dtype=torch.int32))


@pytest.mark.parametrize("channels", [64, 28])
@pytest.mark.parametrize("tile", ["x3/1", "x4/1", "stays {}", "stays {} octets"])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_lists(channels, tile, threshold, tmp_path, monkeypatch):
    """What is listed, and moved by more than the threshold, is torch's; nothing else is written or marked."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    torch.manual_seed(0)
    n, height, width = 2, 9, 16
    source, out = (edge_of(torch.randn(n, channels, height, width).to(DTYPE)) for _ in range(2))
    out.threshold, out.is_weighted, out.limits = threshold, False, np.float32(threshold or 0)
    out.marks = marks(n, height, width)
    weight = (torch.randn(channels, channels, 3, 3) / 24).to(DTYPE)
    operator = Conv2d(weight, torch.randn(channels).to(DTYPE), (1, 1), (1, 1), (1, 1), 1)
    (reach,) = operator.reaches([tuple(source.values.shape)], tuple(source.values.shape))
    ways = convs.candidates(operator, reach, source, out)
    gangs = 2 if threshold else 3
    name = next((name for name in ways if name.endswith(tile.format(gangs))), None)
    if name is None:
        assert channels == 28 and "octets" in tile, "their pixels are too short"
        return
    head = ways[name]()
    tail = Tail(channels, DTYPE, CPU)
    tail.then(Pointwise("relu", {}), ["v"])
    macros = {"WIDTH": 8, **head.macros, **tail.macros(), "TYPE": 3, "FULL": int(channels % 8 == 0)}
    mask = torch.rand(n, 1, height, width) < 0.9
    listed, octets = list_of(mask), mask.view(-1, 8)
    places = octets.any(1).nonzero().flatten()
    of_eight = (octets[places].int() << torch.arange(8)).sum(1)
    counts = torch.tensor([len(places), 0], dtype=torch.int32)
    places = (places << 8 | of_eight).int()
    before = out.values.clone()
    compared = head.more if head.compares else (np.uint64(0), np.uint64(0), np.float32(0))
    numbers = [np.int32(number) for number in (height, width, 0)]
    args = [
        device_bytes(head.packed, CPU), tail.packed(), out.memory, np.int32(out.pitch), np.int32(channels),
        listed.places, listed.count, *numbers, *compared, places, counts,
    ]  # fmt: skip
    held = [np.array([np.uint64(arg.data_ptr()) if isinstance(arg, torch.Tensor) else arg]) for arg in args]
    addresses = np.array([one.ctypes.data for one in held], dtype=np.uint64)
    library(tmp_path, macros).run(3, head.threads, ctypes.c_void_p(addresses.ctypes.data))

    expected = F.conv2d(source.values.float(), weight.float(), operator.bias.float(), padding=1).relu()
    moved = mask
    if threshold is not None:
        moved = mask & ((expected - before.float()).abs() > threshold).any(1, keepdim=True)
        assert torch.equal(out.marks.bits, bits_of(moved))
        assert torch.equal(out.marks.changed.long(), moved.sum((1, 2, 3)))
    wanted = torch.where(moved, expected, before.float())
    assert torch.allclose(out.values.float(), wanted, rtol=1e-2, atol=1e-2)
    assert torch.equal(torch.where(moved, 0, out.values), torch.where(moved, 0, before))
    if head.octets:
        assert counts.tolist() == [0, 0], "the next list begins at 0"
