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
each run comes a kernel with a fault that the tool must find. memcheck may say nothing of it: it meets it several times,
for which it must not end the context with the kernel, and who is silent all the same is asked once more.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

from sanitize_networks import SKIPPED, cases
from sanitize_play import FOUND_BY, play, sing


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


# Barriers of a block: kernels/conv_wgmma.cu has up to 79, in three gangs. synccheck does not come to its end where it
# is told of fewer than a block has.
OPTIONS = {
    "memcheck": ["--destroy-on-device-error", "kernel"],
    "racecheck": ["--num-cuda-barriers", "65536"],
    "synccheck": ["--num-cuda-barriers", "128"],
}
# Seconds for a process to begin: on a busy host torch alone takes over half a minute to import.
ATTACH = "600"
OF_HOPPER = ("conv_wgmma.cu", "conv_behind.cu")
OF_CANARY = re.compile(r"\b(at|in) canary\b")
ENDED = re.compile(r"^PLAYED\b(.*)$", re.MULTILINE)
LONGEST_FIRST = ("racecheck", "initcheck", "synccheck", "memcheck")
BEFORE_SKIPPED = ("sparsify", "wake")


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
            sing(FOUND_BY.index(options.canary))
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


def _kernels_of_this_gpu() -> set[str]:
    """Their sources and their names."""
    hopper = torch.cuda.get_device_capability() == (9, 0)
    sources = {path.name for path in (ROOT / "kernels").glob("*.cu") if hopper or path.name not in OF_HOPPER}
    return sources | kernels(() if hopper else OF_HOPPER)


if __name__ == "__main__":
    sys.exit(main())
