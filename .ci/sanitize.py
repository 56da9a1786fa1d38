"""Play small networks on the GPU under each tool of compute-sanitizer. Fails on a finding in a kernel of ours.

    python .ci/sanitize.py [RUN ...] [--beside 8] [--logs FOLDER] [--limit 900]
    python .ci/sanitize.py play [graph] [NETWORK ...] [--canary TOOL]

A run is a tool on one network, "racecheck of mixed tf32 0.1" (0.1 is the threshold). RUN is a part of such names: what
it names runs before what the next one names, and nothing else does; `--list` prints all. So many run beside each other,
on each GPU in turn, and each says whether it came to its end.

Every kernel of kernels/*.cu is launched, on full, partly changed and still frames (`play`). Where several compute a
layer, or one with other tiles, each is played, not the fastest: networks of one layer in every way, others in ways that
take turns. torch's allocator is off, so that each tensor's bounds are known; a graph cannot be captured then, and
frames are played launch by launch. memcheck plays graphs as well. Where a still frame skips a part of its graph (the
network "skipped") that is what the tools play, and they watch what is launched before that part: a kernel that the
device launches by itself jumps to address 0 where a tool has changed it.

What torch does is not judged, and watched only where it must be; dense convolutions run on the CPU, since racecheck
dies in cuDNN's kernels where it does not watch them, and takes minutes where it does. Nor is what the driver's
interface answers judged: cuda-bindings asks for functions that an older driver has not, and is told so. At the end of
each run comes a kernel with a fault that the tool must find; memcheck may say nothing of it, and is asked once more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class Run(NamedTuple):
    tool: str
    network: str
    graph: bool = False

    @property
    def name(self) -> str:
        return f"{self.tool} of {self.network}" + " in graphs" * self.graph

    @property
    def watched(self) -> list[str]:
        """The kernels that the tool looks at; none where it looks at all. initcheck has to see what torch stores, and
        racecheck dies of a hardware exception in torch's means where it does not watch them."""
        if self.network.startswith(SKIPPED):
            return [*BEFORE_SKIPPED, "canary"]
        every = self.tool == "initcheck" or (self.tool == "racecheck" and "means" in self.network)
        return [] if every else [*sorted(kernels()), "canary"]


class Place(NamedTuple):
    """Where runs play, and until when."""

    tool: str  # compute-sanitizer
    logs: Path
    until: float
    gpus: Iterator[str]  # in turn, as CUDA_VISIBLE_DEVICES calls them


# Of a block: kernels/conv_wgmma.cu has up to 79, in three gangs. synccheck does not come to its end where it is told of
# fewer than a block has.
OPTIONS = {
    tool: ["--num-cuda-barriers", count] for tool, count in (("synccheck", "128"), ("racecheck", "65536"))
}
# Seconds for a process to begin: on a busy host torch alone takes over half a minute to import.
ATTACH = "600"
OF_HOPPER = ("conv_wgmma.cu", "conv_behind.cu")
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
OF_CANARY = re.compile(r"\b(at|in) canary\b")
ENDED = re.compile(r"^PLAYED\b(.*)$", re.MULTILINE)
GATES: dict[str, dict[str, Any]] = {
    "gated": {"smooth": 3, "dilate": 2, "weak": 0.5},
    "gated by means": {"smooth": 5, "recent": 4, "noise": 2.0, "refresh": 3},
    "gated bytes": {"smooth": 3, "dilate": 9, "weak": 0.5, "noise": 2.0},
}
FOUND_BY = ("memcheck", "racecheck", "initcheck", "synccheck")  # what each makes of `tool` in CANARY
LONGEST_FIRST = ("racecheck", "initcheck", "synccheck", "memcheck")
SKIPPED = "skipped"  # the network whose still frames skip a part of the graph
BEFORE_SKIPPED = ("sparsify", "wake")
# Networks of one layer.
IN_EVERY_WAY = ("wide", "a long sum", "octets", "depthwise", "taps on tensor cores", "transposed")
BOUNDS = {"float": 1e-4, "tf32": 1e-2, "half": 2e-2}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="parts of runs' names; or play, graph and networks")
    parser.add_argument("--list", action="store_true", help="print the runs' names")
    parser.add_argument("--canary", choices=FOUND_BY, help="what to do wrong at the end of play")
    parser.add_argument("--beside", type=int, default=8, help="processes at a time")
    parser.add_argument("--logs", type=Path, help="where what they print is kept")
    parser.add_argument("--limit", type=float, default=900, help="seconds for all of it")
    options = parser.parse_args()
    if options.what[:1] == ["play"]:
        graph = options.what[1:2] == ["graph"]
        play(graph, options.what[1 + graph :])
        if options.canary:
            _sing(FOUND_BY.index(options.canary))
        return 0
    runs = _wanted(options.what)
    if options.list:
        print(*(run.name for run in runs), sep="\n")
        return 0
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("there is no compute-sanitizer: it comes with the CUDA toolkit")
        return 1
    logs = options.logs or Path(mkdtemp())
    logs.mkdir(parents=True, exist_ok=True)
    place = Place(tool, logs, time.monotonic() + options.limit, itertools.cycle(_gpus()))
    return sanitize(runs, options.beside, place)


def _wanted(parts: list[str]) -> list[Run]:
    networks = [case.told for case in cases()]
    whole = [network for network in networks if not network.startswith(SKIPPED)]
    runs = [Run(tool, network) for tool in LONGEST_FIRST for network in whole]
    runs += [Run("memcheck", network, graph=True) for network in whole]
    runs += [
        Run(tool, network, graph=True)
        for tool in LONGEST_FIRST
        for network in networks
        if network not in whole and tool != "initcheck"  # which watches all
    ]
    if not parts:
        return runs
    return list(dict.fromkeys(run for part in parts for run in runs if part in run.name))


def _gpus() -> list[str]:
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(place) for place in range(max(1, torch.cuda.device_count()))]


def sanitize(runs: list[Run], beside: int, place: Place) -> int:
    """Play so many at a time; the number of runs that found something or did not end."""
    with ThreadPoolExecutor(beside) as pool:
        # First of all without a tool: kernels are compiled, which takes minutes under one.
        measured = {
            network: pool.submit(_measure, network, place)
            for network in dict.fromkeys(run.network for run in runs)
        }

        def run(one: Run) -> bool:
            measured[one.network].result()
            return _run(one, place)

        bad = sum(pool.map(run, runs))
    print(f"{len(runs) - bad} of {len(runs)} runs came to their end and found nothing")
    if len(measured) < len(list(cases())):
        return bad
    missed = _kernels_of_this_gpu().difference(*(played.result() for played in measured.values()))
    if missed:
        print(f"not played: {', '.join(sorted(missed))}")
    return bad + len(missed)


def _measure(network: str, place: Place) -> set[str]:
    """The kernels that it plays, and their sources; none if it fails."""
    text = _told([sys.executable, __file__, "play", "graph", network], network, place)
    ended = ENDED.search(text)
    if ended is None:
        print(f"{network} does not play without a tool:\n{text[-3000:]}", flush=True)
        return set()
    return set(ended[1].split())


def _run(run: Run, place: Place) -> bool:
    """Whether it found something or did not end."""
    command = [place.tool, "--tool", run.tool, "--report-api-errors", "no", "--print-limit", "100000"]
    command += ["--show-backtrace", "no", "--launch-timeout", ATTACH, *OPTIONS.get(run.tool, [])]
    for kernel in run.watched:
        command += ["--kernel-name", f"kne={kernel}"]
    by_steps = {} if run.graph else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command += [sys.executable, __file__, "play", *["graph"] * run.graph, run.network, "--canary", run.tool]
    began = time.monotonic()
    if began > place.until:
        print(f"{run.name}: not begun", flush=True)
        return True
    text = _told(command, run.name, place, by_steps)
    if ENDED.search(text) and not _sang(text):
        print(f"{run.name}: did not see the canary, once more", flush=True)
        text = _told(command, run.name, place, by_steps)
    return _judge(run, text, time.monotonic() - began)


def _told(command: list[str], name: str, place: Place, more: Mapping[str, str] = {}) -> str:
    """What it prints until its end, or until the time is over."""
    path = place.logs / f"{name.replace(' ', '_')}.txt"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": next(place.gpus), **more}
    with path.open("wb") as log:
        # A session of its own: what it starts is stopped with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            process.wait(max(0.0, place.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return path.read_text(errors="replace")


def _judge(run: Run, text: str, seconds: float) -> bool:
    """Whether what it printed is a finding in a kernel of ours, or not the end of a run."""
    ours = re.compile(rf"\b(at|in) ({'|'.join(kernels())})\b(?!\.)")
    every = [*findings(text)]
    found = [finding for finding in every if ours.search(finding)]
    others = sum(not OF_CANARY.search(finding) for finding in every) - len(found)
    played, alive = ENDED.search(text) is not None, _sang(text)
    report = [
        f"{run.name}: {len(found)} findings in our kernels, {others} elsewhere, {seconds:.0f} s"
        + ("; not ended" if not played else "" if alive else "; did not see the canary")
    ]
    report += [finding[:1500] for finding in found[:5]]
    if not (played and alive):
        report.append(text[-1500:])
    print("\n".join(report), flush=True)
    return bool(found) or not (played and alive)


def _sang(text: str) -> bool:
    """Whether the tool reports the canary."""
    return any(OF_CANARY.search(finding) for finding in findings(text))


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


def kernels(but: Sequence[str] = ()) -> set[str]:
    """The names of all kernels, but for those of some files."""
    files = [path for path in (ROOT / "kernels").glob("*.cu*") if path.name not in but]
    text = "".join(path.read_text() for path in files)
    return set(re.findall(r"__global__ void (?:CLUSTER )?(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", text))


# ---- what is played


def play(graph: bool, only: list[str]) -> None:
    """Networks, in a graph or launch by launch, beside dense ones; the last line names kernels and sources."""
    import torch
    from torch.nn import functional as F

    from deltaconvert.backends import cuda
    from deltaconvert.backends.cuda import launches, tuning

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
        cuda.Recording = _by_steps()  # type: ignore[misc, assignment]
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
    import torch
    from oracle import assert_close, scripted_video

    import deltaconvert

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
    if gate is None or "recent" not in gate:  # a mean over frames goes on towards a frame that stands still
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


def _kernels_of_this_gpu() -> set[str]:
    """Their sources and their names."""
    import torch

    hopper = torch.cuda.get_device_capability() == (9, 0)
    sources = {path.name for path in (ROOT / "kernels").glob("*.cu") if hopper or path.name not in OF_HOPPER}
    return sources | kernels(() if hopper else OF_HOPPER)


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
    """A Recording that captures no graph."""
    from deltaconvert.backends.cuda.recording import Recording

    class BySteps(Recording):
        def _capture(self, steps: Any, skipped: Any = ()) -> None:
            raise RuntimeError("launch by launch")

    return BySteps


class Case(NamedTuple):
    name: str
    network: Any
    shape: tuple[int, ...]
    kind: str
    threshold: float

    @property
    def told(self) -> str:
        return f"{self.name} {self.kind} {self.threshold}"


def cases() -> Iterator[Case]:
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
    bottleneck = Call(
        lambda m, x: (lambda y: (m.again(y) + y).relu())((m.block(x) + m.shortcut(x)).relu()),
        block=nn.Sequential(
            conv(64, 64, 1), nn.ReLU(), conv(64, 64, 3, padding=1), nn.ReLU(), conv(64, 256, 1)
        ),
        shortcut=conv(64, 256, 1),
        again=nn.Sequential(
            conv(256, 64, 1), nn.ReLU(), conv(64, 64, 3, padding=1), nn.ReLU(), conv(64, 256, 1)
        ),
    )
    inverted = Call(
        lambda m, x: m.narrow(m.block(x)) + x,
        block=nn.Sequential(
            conv(32, 96, 1), nn.ReLU6(), conv(96, 96, 3, padding=1, groups=96), nn.ReLU6(), conv(96, 32, 1)
        ),
        narrow=nn.Sequential(
            conv(32, 144, 1), nn.ReLU6(), conv(144, 144, 5, padding=2, groups=144), conv(144, 32, 1)
        ),
    )
    many = nn.Sequential(
        conv(3, 8, 3, stride=2, padding=1), nn.ReLU(), conv(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Upsample(scale_factor=1.5, mode="bilinear"), conv(8, 8, 3, padding=1),
    )  # fmt: skip
    for kind in ("half", "tf32", "float"):
        for threshold in (0.0, 0.1):
            yield Case("mixed", mixed, (2, 3, 36, 52), kind, threshold)
    for kind in ("half", "float"):
        yield Case("means of a gate", gate, (2, 8, 150, 140), kind, 0.0)
        yield Case("means of norms", norms, (2, 12, 150, 140), kind, 0.0)
    for kind in ("half", "tf32"):
        transposed = nn.Sequential(nn.ConvTranspose2d(64, 24, 4, stride=2, padding=1))
        yield Case("transposed", transposed, (1, 64, 17, 19), kind, 0.0)
        long = nn.Sequential(conv(256, 64, 3, padding=1), nn.ReLU())
        yield Case("a long sum", long, (1, 256, 30, 31), kind, 0.0)
        yield Case("wide", nn.Sequential(conv(64, 200, 3, padding=1)), (2, 64, 40, 50), kind, 0.0)
        side_by_side = nn.Sequential(conv(64, 64, 3, padding=1), nn.ReLU())
        for threshold in (0.0, 0.1):
            yield Case("octets", side_by_side, (2, 64, 41, 72), kind, threshold)
        # More pixels and channels than threads take at once, for tiles in shared memory.
        depthwise = nn.Sequential(conv(256, 256, 3, padding=1, groups=256))
        yield Case("depthwise", depthwise, (1, 256, 96, 97), kind, 0.0)
        for threshold in (0.0, 0.1):
            yield Case("inverted", inverted, (1, 32, 41, 70), kind, threshold)
    around = nn.Sequential(conv(96, 96, 5, padding=2, groups=96))
    yield Case("taps on tensor cores", around, (2, 96, 68, 120), "half", 0.0)
    for kind in ("half", "tf32", "float"):
        yield Case("bottleneck", bottleneck, (1, 64, 96, 97), kind, 0.0)  # more tiles than run at once
    for threshold in (0.0, 0.1):
        yield Case("lists aside", many, (2, 3, 260, 320), "float", threshold)
    last = nn.Sequential(conv(8, 12, 3, padding=1), nn.PixelShuffle(2))
    for kind in ("half", "float"):
        yield Case("shuffled at the end", last, (2, 8, 21, 33), kind, 0.0)
    # So many launches that still frames skip them.
    long = nn.Sequential(conv(3, 8, 3, padding=1), *(nn.MaxPool2d(3, 1, 1) for _ in range(64)))
    yield Case(SKIPPED, long, (1, 3, 40, 50), "float", 0.0)
    yield Case("gated", many, (2, 3, 60, 70), "half", 0.1)
    yield Case("gated by means", many, (2, 3, 60, 70), "half", 0.1)
    bytes_of_cameras = Call(lambda m, x: m.many(x.permute(0, 3, 1, 2).half()), many=many)
    yield Case("gated bytes", bytes_of_cameras, (2, 3, 60, 70), "half", 9.0)


if __name__ == "__main__":
    sys.exit(main())
