"""backends/cuda/capturable.py, with the CPU as its device, so that it needs no GPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from deltaconvert.backends.cuda.capturable import run_and_judge

ISLANDS = {
    "a sum": (lambda x: x.cumsum(1) * 2, None),
    "places": (lambda x: x[:, torch.zeros(3, dtype=torch.long)], None),
    "a constant": (lambda x: x * torch.tensor(2.0), None),
    "a value": (lambda x: x * x.max().item(), "waits for the device"),
    "nonzero": (lambda x: x.nonzero(), "nonzero makes depends on values"),
    "a mask": (lambda x: x[x > 0], "index makes depends on values"),
    "written by a mask": (lambda x: torch.index_put(x, (x > 0,), x.sum()), "index_put makes depends on"),
    "the host": (lambda x: x.to("meta").cumsum(1), "_to_copy has to do with meta"),
    "one value": (lambda x: torch.empty((), device="meta").copy_(x.sum()), "copy_ has to do with"),
    "an inverse": (lambda x: torch.linalg.inv(x), "waits for the device"),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_an_island(name):
    function, expected = ISLANDS[name]
    ran = []
    x = torch.rand(4, 4)

    def step(frame):
        ran.append(function(x))

    step.island = SimpleNamespace(pure=True, edge=None)
    reason = run_and_judge(step, None, x.device)
    assert len(ran) == 1
    assert reason is None if expected is None else expected in reason


@pytest.mark.parametrize(
    "island, expected",
    [
        (None, None),
        (SimpleNamespace(pure=False, edge=None), "its Python code runs in every frame"),
        (SimpleNamespace(pure=True, edge=object()), None),
    ],
)
def test_other_steps(island, expected):
    ran = []

    def step(frame):
        ran.append(frame)

    step.island = island
    assert run_and_judge(step, 5, torch.device("cpu")) == expected and ran == [5]


def test_looking_does_not_load_torchs_compiler():
    program = """
import sys, types, torch
from deltaconvert.backends.cuda.capturable import run_and_judge
x = torch.rand(4, 4)
step = lambda frame: x.cumsum(1)
step.island = types.SimpleNamespace(pure=True, edge=None)
assert run_and_judge(step, None, x.device) is None
assert "torch._dynamo" not in sys.modules, "it takes 3 s of a warm start"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
