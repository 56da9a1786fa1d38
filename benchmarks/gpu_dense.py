"""The dense networks that benchmarks/gpu.py compares with, and what the GPU at hand can do at all.

Dense is the traced network in its normal form (batch norm folded) in channels_last with cudnn.benchmark on. Every
engine but the first is a CUDA graph of its own that is replayed on one frame: no engine pays for copying frames in.
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
# What torch.compile is told; none replays a graph of its own, and the first is what "reduce-overhead" computes with. In
# the second 1x1 convolutions are products of matrices, as max-autotune has them, without its search.
MODES: dict[str, dict[str, Any]] = {
    "compile": {"mode": "default"},
    "products": {"options": {"conv_1x1_as_mm": True}},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}
# Cycles for each frame: 0.3 ms, where calls took 0.12 ms on a quiet host and 0.2 on a busy one.
AHEAD = 600_000
# A median is one of so many milliseconds, and of at least and at most so many times.
SPAN, LEAST, MOST = 150.0, 5, 100


def network(name: str, kind: str) -> nn.Module:
    """A zoo network with random weights, and float32 products as `kind` has them from here on."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return model_zoo.create(name, seed=0).to("cuda", TYPES[kind])


@contextmanager
def searching(best: bool) -> Iterator[None]:
    """Whether cuDNN looks for its fastest convolution, which takes seconds and gigabytes, for a shape that is new."""
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
    """The GPU for this process among those that ask for it: a measurement, or the timing of a compiler's candidates."""
    with (Path(tempfile.gettempdir()) / f"deltaconvert-gpu-{card()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def card() -> str:
    """Which GPU of the host it is, as all of its processes are told: "0" or what CUDA_VISIBLE_DEVICES says."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").replace("/", "-")


@torch.no_grad()
def engines(
    model: nn.Module, frame: Tensor, modes: Sequence[str], kept: Mapping[str, Path] | None = None
) -> Iterator[tuple[str, Run]]:
    """The ways to run the dense network on frames like `frame`, each with its name; the first takes any frame.

    kept: by mode, the file of what torch compiled: read if it is there, else written.
    """
    eager, frame = _eager(model, frame)
    yield "eager", eager
    yield "graph", captured(eager, frame)
    for name in modes:
        file = kept.get(name) if kept else None
        CacheArtifactManager.clear()  # torch tells of all that it compiled since
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

    What has lost is dropped before the next engine is made: a graph of a large network holds gigabytes.
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
    """Compile, and keep what came of it. cuDNN's convolutions are candidates in max-autotune alone."""
    eager, frame = _eager(model, frame)
    with candidates_alone(), searching(mode == "max-autotune"):
        compiled(eager, mode)(frame)
    keep(kept)


def keep(file: Path) -> None:
    """Write what torch compiled since it was last told to forget that."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        packed = file.with_suffix(".part")
        packed.write_bytes(lzma.compress(artifacts[0], preset=4))
        packed.rename(file)  # whoever finds it finds all of it


@contextmanager
def candidates_alone() -> Iterator[None]:
    """Inductor times its candidates, and runs what it compiled, on a GPU that nobody else uses."""
    from torch._inductor.output_code import CompiledFxGraph
    from torch._inductor.runtime.benchmarking import benchmarker

    inside: list[bool] = []

    def in_turn(call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(*args: Any, **kwargs: Any) -> Any:
            if inside:  # what runs for the first time times candidates as well
                return call(*args, **kwargs)
            with alone():
                inside.append(True)
                try:
                    return call(*args, **kwargs)
                finally:
                    inside.clear()
                    torch.cuda.empty_cache()  # for those who are next

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
        graph.replay()  # reads what `read` holds: freed, its memory could be gone
        return output

    return replay


def timed(
    run: Run, frames: list[Tensor], place: Callable[[Tensor], Tensor] = lambda frame: frame
) -> tuple[list[float], float, Any]:
    """(milliseconds of each frame on the device, of a call on the host, the last output).

    The frames are queued one after the other; a frame's time lies between two events. The device sleeps first, so that
    the host is ahead of it. Where a busy host falls behind, the device comes to a frame before its call: such a frame
    waits, and its time is left out, unless all of them do. place: puts a frame where it is read from, as a decoder
    would, before its time starts.
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
    """How often what takes so long is timed: a median of the short ones needs more."""
    return int(min(MOST, max(LEAST, SPAN / ms)))


def median_ms(run: Run, frame: Tensor) -> float:
    once = min(timed(run, [frame] * 2)[0])
    return statistics.median(timed(run, [frame] * repeats(once))[0])


def ceilings(kind: str) -> dict[str, float]:
    """What this GPU reaches: bytes a second of a large copy, operations a second of a large product in `kind`."""
    large = torch.rand(1 << 28, device="cuda")
    other = torch.empty_like(large)
    copies = median_ms(lambda _: other.copy_(large), large)
    a, b = (torch.randn(8192, 8192, device="cuda").to(TYPES[kind]) for _ in range(2))
    products = median_ms(lambda _: a @ b, a)
    return {
        "bytes_per_second": 2 * large.nbytes / copies * 1e3,
        "flops_per_second": 2 * 8192**3 / products * 1e3,
    }
