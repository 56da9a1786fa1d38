"""How many cameras one machine serves in real time: 30 frames a second each, 99 % of the answers within 33 ms.

    python benchmarks/streams.py --out FILE [--networks resnet50,...] [--device cuda --type half] [--thresholds FOLDER]
    python benchmarks/streams.py --workers 1,2,4 --device cuda ...   a process for each GPU: one serves, two, then four
    python benchmarks/streams.py --networks resnet50 --clips VIDEO ...   videos of yours, and no other data

Each camera repeats one of the clips of ../shared/data/videos, starting at a place and a time of its own. Its frames
arrive every 33.3 ms, whatever the server does. They have been scaled to the network's size and are bytes in (pinned)
host memory, as a decoder leaves them, or on the GPU (--frames-in device), as a decoder there does. Latency is the time
from a frame's arrival until the event behind its output. Each camera's first frame, which is a full one, is answered
before the clock starts. A frame that is replaced by a newer one of its camera counts as never answered.

Both sides copy frames to the device on a stream of their own while a step runs, and take what waits when that step has
ended. The dense side runs the fastest engine (a CUDA graph, or torch.compile within one; batch norm folded, channels
last) for a fixed batch, the oldest frames first; it times all `--batches` and plays the fastest. The delta side is a
StreamPool, or --pools of them that take turns. Each side is a process of its own. The two prepare at the same time and
are measured one after the other.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks import engines, gpu_dense
from benchmarks.camera_servers import Batched, Pooled
from benchmarks.camera_trials import BUDGET_MS, Server, Trial, frame_of, most
from benchmarks.cameras import CASES, clips, expect_clips
from deltaconvert.normalise import normalise
from deltaconvert.text import table
from deltaconvert.tracing.trace import trace
from deltaconvert.watching import measure


def main() -> None:
    options = arguments()
    command = shlex.join(["python", "benchmarks/streams.py", *sys.argv[1:]])
    facts: dict[str, Any] = {**measure.environment(), "command": command, "device": device_name(options)}
    names = options.networks.split(",")
    expect_clips(names, options.clips)
    rivals = {name: Worker(Dense, name, options, 0) for name in names if options.batches}
    crews = {
        name: [Worker(Pools, name, options, gpu) for gpu in range(max(options.workers))] for name in names
    }
    firsts = [first for first, *_ in crews.values()]
    for worker in (*rivals.values(), *firsts):  # all networks prepare at once; they are measured in turn
        worker.begin("prepare")
    rows = facts["results"] = [first.answer() for first in firsts]
    for rival in rivals.values():
        rival.answer()
    print(f"{len(rows)} prepared", flush=True)
    for row in rows:
        if row["network"] in rivals:  # dense goes first for all networks, to make room for pools
            rival = rivals[row["network"]]
            row["dense"] = rival.measure("serve")
            rival.end()
            write(facts, options)
    for row, crew in zip(rows, crews.values(), strict=True):
        try:
            for _ in served(row, crew, options.workers):
                write(facts, options)
        except WorkerDied as error:
            print(error, flush=True)
        for worker in crew:
            worker.end()
        print(tables(facts), flush=True)


def write(facts: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what is known so far."""
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


def served(row: dict[str, Any], crew: Sequence[Worker], numbers: Sequence[int]) -> Iterator[None]:
    """For each number of workers: how many cameras each serves while so many serve and the others wait."""
    first, *others = crew
    first.measure("ready")  # the others find what it compiled and measured in caches
    for worker in others:  # to make a pool later would disturb the measurement of others
        worker.begin("ready")
    for worker in others:
        worker.answer()
    found = row["served"] = dict[str, Any]()
    guess = 4 * row["dense"]["cameras"] if "dense" in row else None
    for number in numbers:
        for worker in crew[:number]:
            worker.begin("serve", guess)
        found[str(number)] = [worker.answer() for worker in crew[:number]]
        if "dense" in row:
            row.setdefault("ratio", found[str(number)][0]["cameras"] / max(1, row["dense"]["cameras"]))
        yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--type", choices=tuple(gpu_dense.TYPES), default="float")
    parser.add_argument("--size", help="HxW instead of 1080x1920")
    parser.add_argument(
        "--frames-in",
        choices=("host", "device"),
        default="host",
        help="where frames lie when they arrive: in (pinned) memory of the host, or on the GPU",
    )
    parser.add_argument(
        "--fps", type=float, default=30, help="of each camera; the budget is 33/30 of its period"
    )
    parser.add_argument(
        "--thresholds", default="8", help="grey levels for the input, or a folder of NETWORK.json"
    )
    parser.add_argument("--engines", default=",".join(engines.ENGINES), help="dense ones on the CPU")
    parser.add_argument("--batches", default="8", help="of the dense engines")
    parser.add_argument(
        "--capacity", type=int, help="streams that the pool is made for; else as the network's case says"
    )
    parser.add_argument("--pools", type=int, default=1, help="that share the cameras and take turns")
    parser.add_argument("--guess", type=int, help="cameras of the pool that are tried first")
    parser.add_argument(
        "--workers",
        type=listed,
        default=[1],
        help="how many processes serve at a time, each with a GPU of its own",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a trial, after warming up")
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument(
        "--clips", type=Path, nargs="+", default=(), help="videos instead of ../shared/data's"
    )
    parser.add_argument("--profile", action="store_true", help="print what a step's time goes to")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def listed(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


class WorkerDied(SystemExit):
    """The process of a worker has ended; the message says why."""


class Worker:
    """A process that prepares a network and then waits to be asked for measurements."""

    def __init__(self, side: type[Bench], name: str, options: argparse.Namespace, gpu: int):
        self._name, spawn = name, multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        self._process = spawn.Process(target=work, args=(theirs, side, name, options, gpu), daemon=True)
        self._process.start()
        theirs.close()  # so that the connection ends if the process dies

    def begin(self, what: str, *args: Any) -> None:
        with self._alive():
            self._line.send((what, *args))

    def answer(self) -> Any:
        with self._alive():
            return self._line.recv()

    def measure(self, what: str) -> Any:
        self.begin(what)
        return self.answer()

    def end(self) -> None:
        """End the process and wait for it, since the next one needs its memory."""
        with suppress(BrokenPipeError):
            self._line.send(None)
        self._process.join(10)
        self._process.kill()  # it would wait for compilers that it started

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            raise WorkerDied(f"{self._name}: a process of it ended; why stands above") from None


def work(line: Any, side: type[Bench], name: str, options: argparse.Namespace, gpu: int) -> None:
    if max(options.workers) > 1:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[gpu] if shown else str(gpu)
    bench = side(name, options)
    while (asked := line.recv()) is not None:
        what, *args = asked
        found = getattr(bench, what)(*args)
        print(name, gpu, side.__name__, what, found, flush=True)
        line.send(found)


class Bench:
    """A network and its clips; what takes memory or time is made on request."""

    def __init__(self, name: str, options: argparse.Namespace):
        kind, device = gpu_dense.TYPES[options.type], options.device
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.type == "tf32"
        torch.backends.cudnn.benchmark = device == "cuda"
        self._name, self._options = name, options
        self._model = CASES[name].make().eval().to(device, kind)
        self._images = clips(name, options.size, device, range(options.frames), options.clips)
        self._example = self._images[0][0].to(device)
        if options.frames_in == "device":
            self._images = [[frame.to(device) for frame in clip] for clip in self._images]

    def _most(self, server: Server, guess: int, limit: int, part: float = 0.2) -> dict[str, Any]:
        return most(lambda count: Trial(server, count, self._images, self._options), guess, limit, part)


class Dense(Bench):
    """The dense network in batches."""

    def prepare(self) -> None:
        example = self._example
        graph = normalise(trace(self._model, (example,), {}).graph)
        batches = [int(batch) for batch in self._options.batches.split(",")]
        self._servers = [Batched(self._model, graph, example, batch, self._options) for batch in batches]

    def serve(self) -> dict[str, Any]:
        """Cameras served with the fastest batch per frame, among those quick enough for a frame to wait for one."""
        options, budget = self._options, BUDGET_MS * 30 / self._options.fps
        tried = {server.facts["batch"]: server.facts["batch_ms"] for server in self._servers}
        batch = max(tried, key=lambda batch: (2 * tried[batch] <= budget, batch / tried[batch]))
        (server,) = (server for server in self._servers if server.facts["batch"] == batch)
        guess = int(0.95 * batch / tried[batch] * 1e3 / options.fps)
        return {**server.facts, **self._most(server, guess, 4096), "ms of each batch": tried}


class Pools(Bench):
    """The converted network in a pool, or several."""

    def __init__(self, name: str, options: argparse.Namespace):
        super().__init__(name, options)
        file = Path(options.thresholds) / f"{name}.json"
        self._threshold: Any = str(file) if file.exists() else {"input": float(options.thresholds)}
        self._capacity = options.capacity or CASES[name].slots
        self._delta: deltaconvert.DeltaModel | None = None
        self._found: int | None = None  # how many cameras it served last
        self._facts: dict[str, Any] = {}  # of the pool, with as many cameras as it served first

    def prepare(self) -> dict[str, Any]:
        self._delta = deltaconvert.convert(self._model, self._example, threshold=self._threshold)
        return {
            "network": self._name,
            "size": list(self._example.shape[1:3]),
            "type": self._options.type,
            "fps": self._options.fps,
            "frames in": self._options.frames_in,
            "threshold": self._threshold,
        }

    def ready(self) -> None:
        """Make the pool, which takes a part of the time of converting."""
        if self._delta is None:
            self.prepare()
        assert self._delta is not None
        self._pool = Pooled(self._delta, self._capacity, self._options.pools)
        gc.collect()
        torch.cuda.empty_cache()  # returns the memory that planning took

    def serve(self, guess: int | None) -> dict[str, Any]:
        """guess: how many cameras are tried first, in the first call."""
        pool, options = self._pool, self._options
        assert self._delta is not None
        guess = options.guess or guess or 3 * self._capacity // 4
        first = self._found is None
        found = self._most(pool, self._found or guess, self._capacity, 0.2 if first else 0.05)
        self._found = max(1, found["cameras"])
        if options.profile:
            profile(pool, self._images, self._found, options)
        if first:
            features = CASES[self._name].features
            self._facts = pool.facts(self._delta, self._images, self._found, features)
            self._facts["ms of a step by its frames"] = pool.steps(self._images)
        return {**found, "capacity": self._capacity, **self._facts}


def profile(pool: Pooled, images: list[list[Tensor]], cameras: int, options: argparse.Namespace) -> None:
    """Print the time of a step of each pool with all of its cameras: on the host, and by kernel on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_device = options.device == "cuda"
    pool.begin(cameras)
    for step in range(6):
        for camera in range(cameras):
            pool.put(camera, frame_of(images, camera, step))
        if on_device:
            torch.cuda.synchronize()
        if step == 5:
            watching = profiler(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU])
            watching.__enter__()
        begun = time.perf_counter()
        for _ in pool.pools:
            pool.launch()
        host = time.perf_counter() - begun
        if on_device:
            torch.cuda.synchronize()
    watching.__exit__(None, None, None)
    print(f"host {host * 1e3:.2f} ms for {cameras}")
    key = "self_device_time_total" if on_device else "self_cpu_time_total"
    rows = sorted(((getattr(row, key), row.count, row.key) for row in watching.key_averages()), reverse=True)
    for spent, count, name in rows[:25]:
        print(f"{spent / cameras:8.3f} us a frame, {count:3} times: {name[:60]}")


def device_name(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"


def tables(facts: dict[str, Any]) -> str:
    head = ("network", "size", "dense cameras", "workers", "cameras of each", "times as many")
    body = []
    for row in facts["results"]:
        for number, workers in row.get("served", {}).items():
            size, dense = "x".join(map(str, row["size"])), str(row.get("dense", {}).get("cameras", ""))
            each = " + ".join(full(worker) for worker in workers)
            body.append((row["network"], size, dense, number, each, f"{row.get('ratio', math.nan):.2f}"))
    return table(head, body)


def full(worker: dict[str, Any]) -> str:
    """The number of cameras that a worker serves, with a + if it has no slot for more."""
    return str(worker["cameras"]) + "+" * (worker["cameras"] == worker["capacity"])


if __name__ == "__main__":
    main()
