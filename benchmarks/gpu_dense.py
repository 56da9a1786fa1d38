"""The dense engines that benchmarks/gpu.py compares with, and the rates that this GPU reaches at best.

Dense is the traced network in its normal form (batch norm folded), in channels_last with cudnn.benchmark on. Every
engine but the first is a CUDA graph of its own that is replayed on one frame, so no engine pays for copying frames in.
"""

from __future__ import annotations

import copy
import fcntl
import gc
import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.compiler._cache import CacheArtifactManager

import model_zoo
from deltaconvert.normalise import normalise
from deltaconvert.tracing.trace import trace

TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float": torch.float32}
Run = Callable[[Tensor], Any]
# Options of torch.compile. None makes torch replay a graph of its own. The first is what "reduce-overhead" computes
# with; the second turns 1x1 convolutions into matrix products, like max-autotune, but without its search.
MODES: dict[str, dict[str, Any]] = {
    "compile": {"mode": "default"},
    "products": {"options": {"conv_1x1_as_mm": True}},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
# The device sleeps so many cycles for each frame: 0.3 ms. Calls took 0.12 ms on a quiet host and 0.2 on a busy one.
AHEAD = 600_000
# A median covers about so many milliseconds, and at least and at most so many calls.
SPAN, LEAST, MOST = 150.0, 5, 100


def network(name: str, kind: str) -> nn.Module:
    """A zoo network with random weights. Sets the process's precision of float32 products to that of `kind`."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return model_zoo.create(name, seed=0).to("cuda", TYPES[kind])


@contextmanager
def searching(best: bool) -> Iterator[None]:
    """Whether cuDNN searches its fastest convolution for each new shape, which takes seconds and gigabytes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = best
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def channels(model: nn.Module) -> int:
    return next(p for p in model.parameters() if p.dim() == 4).shape[1]


@contextmanager
def alone() -> Iterator[None]:
    """Holds the GPU's lock for this process: to measure, or to time a compiler's candidates."""
    with (Path(tempfile.gettempdir()) / f"deltaconvert-gpu-{card()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def card() -> str:
    """The name of the GPU among those of the host: what CUDA_VISIBLE_DEVICES says, or "0"."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").replace("/", "-")


@torch.no_grad()
def engines(
    model: nn.Module, frame: Tensor, modes: Sequence[str], kept: Mapping[str, Path] | None = None
) -> Iterator[tuple[str, Run]]:
    """Yields the ways to run the dense network on frames like `frame`, with their names; the first takes any frame.

    kept: for each mode the file of what torch compiled, which is read if it exists and written otherwise.
    """
    eager, frame = _eager(model, frame)
    yield "eager", eager
    yield "graph", captured(eager, frame)
    for name in modes:
        file = kept.get(name) if kept else None
        CacheArtifactManager.clear()  # torch saves all that it compiled since this call
        there = file is not None and file.exists()
        if file is not None and there:
            torch.compiler.load_cache_artifacts(lzma.decompress(file.read_bytes()))
        run = captured(compiled(eager, name), frame)
        if file is not None and not there:
            keep(file)
        yield name, run
        del run


def raced(runs: Iterator[tuple[str, Run]], frame: Tensor) -> tuple[dict[str, float], dict[str, Run]]:
    """(milliseconds of each engine, the first engine and the fastest one by name) on a frame in channels_last.

    An engine that has lost is dropped before the next one is made: a graph of a large network holds gigabytes.
    """
    times: dict[str, float] = {}
    left: dict[str, Run] = {}
    for name, run in runs:
        times[name] = median_ms(run, frame)
        left[name] = run
        best = min(left, key=lambda name: times[name])
        left = {kept: left[kept] for kept in dict.fromkeys((next(iter(times)), best))}
        del run
        gc.collect()
        torch.cuda.empty_cache()
    return times, left


@torch.no_grad()
def warm(model: nn.Module, frame: Tensor, mode: str, kept: Path) -> None:
    """Compile, and keep the result. cuDNN's convolutions are candidates in max-autotune alone."""
    eager, frame = _eager(model, frame)
    with candidates_alone(), searching(mode == "max-autotune"):
        compiled(eager, mode)(frame)
    keep(kept)


def keep(file: Path) -> None:
    """Write what torch compiled since its artifacts were last cleared."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        packed = file.with_suffix(".part")
        packed.write_bytes(lzma.compress(artifacts[0], preset=4))
        packed.rename(file)  # so that no process finds half a file


@contextmanager
def candidates_alone() -> Iterator[None]:
    """Makes Inductor time its candidates, and run what it compiled, while no other process uses the GPU."""
    from torch._inductor.output_code import CompiledFxGraph
    from torch._inductor.runtime.benchmarking import benchmarker

    inside: list[bool] = []

    def in_turn(call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(*args: Any, **kwargs: Any) -> Any:
            if inside:  # a first run times candidates as well
                return call(*args, **kwargs)
            with alone():
                inside.append(True)
                try:
                    return call(*args, **kwargs)
                finally:
                    inside.clear()
                    torch.cuda.empty_cache()  # for the next process

        return waits

    timer = type(benchmarker)
    with (
        mock.patch.object(timer, "benchmark_gpu", in_turn(timer.benchmark_gpu)),
        mock.patch.object(CompiledFxGraph, "__call__", in_turn(CompiledFxGraph.__call__)),
    ):
        yield


def _eager(model: nn.Module, frame: Tensor) -> tuple[Run, Tensor]:
    side = min(256, *frame.shape[2:])
    traced = trace(model, (frame[:1, :, :side, :side].contiguous(),), {}).graph
    graph = copy.deepcopy(normalise(traced)).to(memory_format=torch.channels_last)
    return lambda frame: graph(frame)[0], frame.contiguous(memory_format=torch.channels_last)


def compiled(run: Run, mode: str) -> Run:
    torch.compiler.reset()
    return torch.compile(run, dynamic=False, **MODES[mode])


def captured(run: Run, frame: Tensor) -> Run:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(frame)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(frame)

    def replay(_: Tensor, read: tuple[Any, ...] = (run, frame)) -> Any:
        graph.replay()  # reads the memory of `read`, which therefore must not be freed
        return output

    return replay


def timed(
    run: Run, frames: list[Tensor], place: Callable[[Tensor], Tensor] = lambda frame: frame
) -> tuple[list[float], float, Any]:
    """(milliseconds of each frame on the device, of a call on the host, the last output).

    The frames are queued one after the other, each between two events. The device sleeps first, so that the host gets
    ahead of it. If a busy host falls behind, the device has to wait for a call; such frames are left out, unless all of
    them waited. place: puts a frame where it is read from, as a decoder would, before its time starts.
    """
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in frames]
    host, waited = 0.0, []
    with alone():
        torch.cuda.synchronize()
        torch.cuda._sleep(AHEAD * len(frames))
        for frame, (start, end) in zip(frames, events, strict=True):
            there = place(frame)
            start.record()
            before = time.perf_counter()
            output = run(there)
            host += time.perf_counter() - before
            end.record()
            waited.append(start.query())
        torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events]
    kept = [ms for ms, late in zip(times, waited, strict=True) if not late]
    return kept or times, host / len(frames) * 1e3, output


def repeats(ms: float) -> int:
    """How often a call of so many milliseconds is timed: medians of short ones need more calls."""
    return int(min(MOST, max(LEAST, SPAN / ms)))


def median_ms(run: Run, frame: Tensor) -> float:
    once = min(timed(run, [frame] * 2)[0])
    return statistics.median(timed(run, [frame] * repeats(once))[0])


def ceilings(kind: str) -> dict[str, float]:
    """Bytes per second in a large copy, and operations per second in a large product of `kind`, on this GPU."""
    large = torch.rand(1 << 28, device="cuda")
    other = torch.empty_like(large)
    copies = median_ms(lambda _: other.copy_(large), large)
    a, b = (torch.randn(8192, 8192, device="cuda").to(TYPES[kind]) for _ in range(2))
    products = median_ms(lambda _: a @ b, a)
    return {
        "bytes_per_second": 2 * large.nbytes / copies * 1e3,
        "flops_per_second": 2 * 8192**3 / products * 1e3,
    }
