"""What .ci/sanitize.py has the tools watch: its networks, played on the GPU; at the end a kernel with a fault.

Of the layers that several kernels compute each way is played, not the fastest (`Ways`). Dense convolutions run on the
CPU: racecheck dies in cuDNN's kernels where it does not watch them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from oracle import assert_close, scripted_video
from sanitize_networks import GATES, IN_EVERY_WAY, Case, cases
from torch.nn import functional as F

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import launches, tuning
from deltaconvert.backends.cuda.recording import Recording

CANARY = r"""
extern "C" __global__ void canary(int tool, const int* unset, const int* nowhere) {
    __shared__ volatile int one;  // or its stores would be removed
    if (tool == 0 && *nowhere) one = 0;
    if (tool == 1) one = threadIdx.x;
    if (tool == 2 && unset[threadIdx.x]) one = 0;
    if (tool == 3) {  // nobody has set the barrier up
        __shared__ unsigned long long barrier, state;
        const unsigned at = (unsigned)__cvta_generic_to_shared(&barrier);
        asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
    }
}
"""
# Of single ones behind graphs memcheck missed one in five, of six times eight none (docs/gpu_checks.md).
SONGS = 8
FOUND_BY = ("memcheck", "racecheck", "initcheck", "synccheck")  # what each makes of `tool` in CANARY
BOUNDS = {"float": 1e-4, "tf32": 1e-2, "half": 2e-2}


def play(graph: bool, only: list[str]) -> None:
    """Networks, in a graph or launch by launch, beside dense ones; the last line names kernels and sources."""
    played = set()

    class Noted(launches.Kernel):
        def __init__(self, source: str, *rest: Any):
            self._source = source
            super().__init__(source, *rest)

        def __call__(self, *args: Any, **options: Any) -> None:
            played.update((self._source, self.name))
            super().__call__(*args, **options)

    launches.Kernel = Noted  # type: ignore[misc]
    if not graph:
        cuda.Recording = BySteps  # type: ignore[misc]
    for name in ("conv2d", "conv_transpose2d"):
        setattr(F, name, _on_the_cpu(getattr(F, name)))
    ways = Ways()
    tuning.Tuner.best = lambda tuner, layer, heads, *rest: ways.next(heads)  # type: ignore[method-assign]
    torch.set_default_device("cuda")
    for place, case in enumerate(cases()):
        if only and case.told not in only:
            continue
        torch.backends.cudnn.allow_tf32 = case.kind == "tf32"
        for turn in itertools.count():
            ways.first, ways.layers = place + turn, 0
            _play(case)
            if case.name not in IN_EVERY_WAY or turn + 1 >= ways.most:
                break
        print(case.told, flush=True)
    torch.cuda.synchronize()
    print("PLAYED", *sorted(played), flush=True)  # before a canary ends the process


def _play(case: Case) -> None:
    """Full, still and partly changed frames; the output is the dense network's."""
    dtype = torch.float16 if case.kind == "half" else torch.float32
    network = case.network.to("cuda", dtype).eval()
    video = [_as_taken(frame, case.name, dtype) for frame in scripted_video(case.shape, torch.float32)]
    gate = GATES.get(case.name)
    model = deltaconvert.convert(network, video[0], threshold=case.threshold, gate=gate)
    for t in (0, 1, 2, 10):
        output = model(video[t])
    with torch.no_grad():
        expected = network(video[10])
    if not case.threshold:
        error = (output - expected).abs().max() / expected.abs().max()
        assert error <= BOUNDS[case.kind], f"{case.told}: off by {error:.2g}"
    again = model(video[10])
    # A mean over frames goes on towards a frame that stands still; so do tiles that wait.
    if gate is None or not {"recent", "max_density"} & gate.keys():
        assert_close(output, again, "a still frame")


class Ways:
    """Chooses among kernels for a layer in place of a tuner: not the fastest but each in turn, from layer to layer."""

    def __init__(self) -> None:
        self.first = self.layers = 0  # the way of a network's first layer; layers so far
        self.most = 1  # of a layer

    def next(self, heads: Mapping[str, Callable[[], Any]]) -> Any:
        self.most = max(self.most, len(heads))
        place, self.layers = self.first + self.layers, self.layers + 1
        return [*heads.values()][place % len(heads)]()


def _as_taken(frame: Any, name: str, dtype: Any) -> Any:
    """A frame in the form that the network `name` takes: bytes have their channels last, as cameras give them."""
    return (frame * 255).byte().permute(0, 2, 3, 1).contiguous() if name == "gated bytes" else frame.to(dtype)


def _on_the_cpu(convolution: Any) -> Any:
    """A convolution of torch in single precision there."""

    def call(x: Any, *args: Any) -> Any:
        there = [arg.to("cpu", torch.float32) if isinstance(arg, torch.Tensor) else arg for arg in (x, *args)]
        return convolution(*there).to(x)

    return call


def sing(tool: int) -> None:
    """End the process with a kernel in which `tool`, a place in FOUND_BY, has something to find."""
    import cupy
    import numpy as np

    kernel = cupy.RawKernel(CANARY, "canary")
    unset = cupy.cuda.memory.Memory(4096)  # straight from the driver
    try:
        for _ in range(SONGS if FOUND_BY[tool] == "memcheck" else 1):
            kernel((1,), (64,), (np.int32(tool), np.uint64(unset.ptr), np.uint64(1 << 46)))
            cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        print(f"the canary: {error}", flush=True)
    os._exit(0)  # a context that a tool ended cannot be left in order


class BySteps(Recording):
    """Captures no graph."""

    def _capture(self, steps: Any, skipped: Any = ()) -> None:
        raise RuntimeError("launch by launch")
