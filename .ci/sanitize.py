"""Play small networks on the GPU under each tool of compute-sanitizer. Fails on a finding in a kernel of ours.

    python .ci/sanitize.py [memcheck racecheck initcheck synccheck] [--logs FOLDER] [--limit 300]
    python .ci/sanitize.py play [graph] [--only TEXT] [--without TEXT] [--canary TOOL]

Every kernel of kernels/*.cu is launched, on full, partly changed and still frames, with and without thresholds
(`play`). torch's allocator is off, so that each tensor's bounds are known; a graph cannot be captured then, and
frames are played launch by launch. memcheck plays graphs as well. What torch does is not judged, and watched only where
it must be; dense convolutions run on the CPU, since racecheck dies in cuDNN's kernels where it does not watch them, and
takes minutes where it does. Nor is what the driver's interface answers judged: cuda-bindings asks for functions that an
older driver has not, and is told so. At the end of each run comes a kernel with a fault that the tool must find.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class Run(NamedTuple):
    tool: str
    play: tuple[str, ...] = ()
    ours: bool = True  # it watches no kernels but ours


RUNS = {
    "memcheck": Run("memcheck"),
    "memcheck of graphs": Run("memcheck", ("graph",)),
    "racecheck": Run("racecheck", ("--without", "means")),
    # It dies of a hardware exception in torch's means where it does not watch them.
    "racecheck of means": Run("racecheck", ("--only", "means"), ours=False),
    "initcheck": Run("initcheck", ours=False),
    "synccheck": Run("synccheck"),
}
# Of a block: kernels/conv_wgmma.cu has up to twenty.
OPTIONS = {
    tool: ["--num-cuda-barriers", count] for tool, count in (("synccheck", "32"), ("racecheck", "65536"))
}
OF_HOPPER = "conv_wgmma.cu"
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
FOUND_BY = ("memcheck", "racecheck", "initcheck", "synccheck")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="tools; or play, and graph")
    parser.add_argument("--only", default="", help="play networks with this in their name")
    parser.add_argument("--without", default="", help="but not those with this")
    parser.add_argument("--canary", choices=FOUND_BY, help="what to do wrong at the end")
    parser.add_argument("--logs", type=Path, help="where what they print is kept")
    parser.add_argument("--limit", type=float, default=900, help="seconds for all of it")
    options = parser.parse_args()
    if options.what[:1] == ["play"]:
        play("graph" in options.what, options.only, options.without)
        if options.canary:
            _sing(FOUND_BY.index(options.canary))
        return 0
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("there is no compute-sanitizer: it comes with the CUDA toolkit")
        return 1
    logs = options.logs or Path(mkdtemp())
    logs.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.limit
    subprocess.run([sys.executable, __file__, "play", "graph"], check=True)  # compiles, and chooses tiles
    wanted = {name: run for name, run in RUNS.items() if not options.what or run.tool in options.what}
    running = {name: _start(tool, name, run, logs) for name, run in wanted.items()}
    return int(any([_judge(name, process, logs, until) for name, process in running.items()]))


def _start(tool: str, name: str, run: Run, logs: Path) -> subprocess.Popen[bytes]:
    command = [tool, "--tool", run.tool, "--report-api-errors", "no", "--print-limit", "100000"]
    command += ["--show-backtrace", "no", *OPTIONS.get(run.tool, [])]
    for kernel in (*sorted(kernels()), "canary") if run.ours else ():
        command += ["--kernel-name", f"kne={kernel}"]
    by_steps = {} if "graph" in run.play else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with _log(name, logs).open("wb") as log:
        return subprocess.Popen(
            [*command, sys.executable, __file__, "play", *run.play, "--canary", run.tool],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **by_steps},
            start_new_session=True,  # what it starts is stopped with it
        )


def _log(name: str, logs: Path) -> Path:
    return logs / f"{name.replace(' ', '_')}.txt"


def _judge(name: str, process: subprocess.Popen[bytes], logs: Path, until: float) -> bool:
    """Whether a run found something or did not end."""
    began = time.monotonic()
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    text = _log(name, logs).read_text(errors="replace")
    found, others, ours = [], 0, re.compile(rf"\b(at|in) ({'|'.join(kernels())})\b(?!\.)")
    canary = re.compile(r"\b(at|in) canary\b")
    alive = False
    for finding in findings(text):
        if ours.search(finding):
            found.append(finding)
        elif canary.search(finding):
            alive = True
        else:
            others += 1
    ended = "PLAYED" in text and alive
    print(
        f"{name}: {len(found)} findings in our kernels, {others} elsewhere, waited {time.monotonic() - began:.0f} s"
        + ("" if ended else "; not ended" if "PLAYED" not in text else "; did not see the canary"),
        flush=True,
    )
    for finding in found[:5]:
        print(finding[:1500])
    if not ended:
        print(text[-1500:])
    return bool(found) or not ended


def findings(text: str) -> Iterator[str]:
    """The reports in what a tool printed: a line at the margin of the box, and those that stand further in."""
    report: list[str] = []
    for line in text.splitlines():
        inside = re.match(r"=========( +)(\S.*)?$", line)
        if inside is None:
            continue
        if len(inside[1]) > 1:
            report.append(line)
            continue
        if len(report) > 1:
            yield "\n".join(report)
        report = [line]
    if len(report) > 1:
        yield "\n".join(report)


def kernels() -> set[str]:
    """The names of all kernels."""
    text = "".join(path.read_text() for path in (ROOT / "kernels").glob("*.cu*"))
    return set(re.findall(r"__global__ void (?:CLUSTER )?(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text))


# ---- what is played


def play(graph: bool, only: str, without: str) -> None:
    import torch
    from oracle import assert_close, scripted_video
    from torch.nn import functional as F

    import deltaconvert
    from deltaconvert.backends import cuda
    from deltaconvert.backends.cuda import launches

    played = set()

    class Noted(launches.Kernel):
        def __init__(self, source: str, *rest: Any):
            self._source = source
            super().__init__(source, *rest)

        def __call__(self, *args: Any, **options: Any) -> None:
            played.add(self._source)
            super().__call__(*args, **options)

    launches.Kernel = Noted  # type: ignore[misc]
    if not graph:
        cuda.Recording = _by_steps()  # type: ignore[misc, assignment]
    for name in ("conv2d", "conv_transpose2d"):
        setattr(F, name, _on_the_cpu(getattr(F, name)))
    torch.set_default_device("cuda")
    bounds = {"float": 1e-4, "tf32": 1e-2, "half": 2e-2}
    for name, network, shape, kind, threshold in cases():
        told = f"{name} {kind} {threshold}"
        if only not in told or (without and without in told):
            continue
        torch.backends.cudnn.allow_tf32 = kind == "tf32"
        dtype = torch.float16 if kind == "half" else torch.float32
        network = network.to("cuda", dtype).eval()
        video = [frame.to(dtype) for frame in scripted_video(shape, torch.float32)]
        gate = {"smooth": 3, "dilate": 2, "weak": 0.5} if name == "gated" else None
        model = deltaconvert.convert(network, video[0], threshold=threshold, gate=gate)
        for t in (0, 1, 2, 10):
            output = model(video[t])
        with torch.no_grad():
            expected = network(video[10])
        if not threshold:
            error = (output - expected).abs().max() / expected.abs().max()
            assert error <= bounds[kind], f"{name} {kind}: off by {error:.2g}"
        assert_close(output, model(video[10]), "a still frame")
        print(told, flush=True)
    every = {path.name for path in (ROOT / "kernels").glob("*.cu")}
    if torch.cuda.get_device_capability() != (9, 0):
        every.discard(OF_HOPPER)
    assert only or without or played == every, f"not played: {every - played}"
    torch.cuda.synchronize()
    print("PLAYED")


def _on_the_cpu(convolution: Any) -> Any:
    """A convolution of torch in single precision there."""

    def call(x: Any, *args: Any) -> Any:
        import torch

        there = [arg.to("cpu", torch.float32) if isinstance(arg, torch.Tensor) else arg for arg in (x, *args)]
        return convolution(*there).to(x)

    return call


def _sing(tool: int) -> None:
    import cupy
    import numpy as np

    kernel = cupy.RawKernel(CANARY, "canary")
    unset = cupy.cuda.memory.Memory(4096)  # straight from the driver
    try:
        kernel((1,), (64,), (np.int32(tool), np.uint64(unset.ptr), np.uint64(1 << 46)))
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        print(f"the canary: {error}", flush=True)
    os._exit(0)  # a context that memcheck ended cannot be left in order


def _by_steps() -> type:
    """A Recording without a graph."""
    import torch

    from deltaconvert.backends.cuda.kernels import on_current_stream

    class BySteps:
        def __init__(self, device: torch.device, start: Any, join: Any, finish: Any):
            self._device, self._start, self._finish = device, start, finish
            self.outside: dict[str, str] = {}

        def play(self, steps: Any, frame: Any) -> None:
            with on_current_stream(self._device):
                self._start()
                for step in steps:
                    step(frame)
                self._finish()

    return BySteps


def cases() -> Iterator[tuple[str, Any, tuple[int, ...], str, float]]:
    """(name, network, shape of a frame, type of numbers, threshold)."""
    import torch
    from oracle import Call
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)

    def conv(*args: int, **options: Any) -> nn.Module:
        return nn.Conv2d(*args, **options)

    mixed = Call(
        lambda m, x: m.head(torch.cat([m.up(m.block(m.stem(x))), m.shuffle(m.stem(x))], 1)),
        stem=nn.Sequential(conv(3, 24, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        block=nn.Sequential(
            conv(24, 24, 3, padding=1, groups=24), nn.SiLU(), conv(24, 40, 1), nn.AvgPool2d(3, 1, 1)
        ),
        up=nn.ConvTranspose2d(40, 16, 2, stride=2),
        shuffle=nn.PixelShuffle(2),
        head=conv(22, 8, 3, padding=1),
    )
    gate = Call(
        lambda m, x: m.a(x) * m.b(x.mean((2, 3), keepdim=True)).sigmoid(), a=conv(8, 16, 1), b=conv(8, 16, 1)
    )
    norms = Call(
        lambda m, x: (
            torch.cat([m.group(x).softmax(1), m.shuffle(x), F.adaptive_max_pool2d(x, (150, 140))], 1)
            * F.adaptive_max_pool2d(m.a(x), 1).sigmoid()
        ),
        a=conv(12, 36, 1),
        group=nn.GroupNorm(3, 12),
        shuffle=nn.ChannelShuffle(2),
    )
    many = nn.Sequential(
        conv(3, 8, 3, stride=2, padding=1), nn.ReLU(), conv(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Upsample(scale_factor=1.5, mode="bilinear"), conv(8, 8, 3, padding=1),
    )  # fmt: skip
    for kind in ("half", "tf32", "float"):
        for threshold in (0.0, 0.1):
            yield "mixed", mixed, (2, 3, 36, 52), kind, threshold
    for kind in ("half", "float"):
        yield "means of a gate", gate, (2, 8, 150, 140), kind, 0.0
        yield "means of norms", norms, (2, 12, 150, 140), kind, 0.0
    for kind in ("half", "tf32"):
        transposed = nn.Sequential(nn.ConvTranspose2d(64, 24, 4, stride=2, padding=1))
        yield "transposed", transposed, (1, 64, 17, 19), kind, 0.0
        yield "a long sum", nn.Sequential(conv(256, 64, 3, padding=1), nn.ReLU()), (1, 256, 30, 31), kind, 0.0
        yield "wide", nn.Sequential(conv(64, 200, 3, padding=1)), (2, 64, 40, 50), kind, 0.0
        # More pixels and channels than threads take at once, for tiles in shared memory.
        yield (
            "depthwise",
            nn.Sequential(conv(256, 256, 3, padding=1, groups=256)),
            (1, 256, 96, 97),
            kind,
            0.0,
        )
    for threshold in (0.0, 0.1):
        yield "lists aside", many, (2, 3, 260, 320), "float", threshold
    yield "gated", many, (2, 3, 60, 70), "half", 0.1


if __name__ == "__main__":
    sys.exit(main())
