"""Cameras that one machine serves in real time: 30 frames a second each, 99 % of the answers within 33 ms.

    python benchmarks/streams.py --out FILE [--networks resnet50,...] [--device cuda --type half] [--thresholds FOLDER]
    python benchmarks/streams.py --workers 1,2,4 --device cuda ...   a process for each GPU: one serves, two, then four

Each camera plays one of the clips of ../shared/data/videos from another place, over and over, and has its own phase:
its frames arrive every 33.3 ms, whatever the server does. They are bytes in (pinned) host memory, as a decoder leaves
them, or on the GPU (--frames-in device), as one there does, scaled to the network's size before the clock starts.
Latency runs from a frame's arrival until the event behind its output; each camera's first frame, a full one, comes
before the clock runs. A frame that a newer one of its camera replaces counts as never answered.

Both sides bring frames to the device on a stream of their own while a step runs, and take what waits when the one
before has ended. Dense: the fastest engine (CUDA graph, torch.compile in one; batch norm folded, channels last) for a
fixed batch, the oldest frames first; all `--batches` are timed, and the fastest plays. Delta: a StreamPool, or --pools
that take turns.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks import engines, gpu_dense  # noqa: E402
from benchmarks.camera_servers import Batched, Pooled  # noqa: E402
from benchmarks.camera_trials import BUDGET_MS, Server, Trial, frame_of, most  # noqa: E402
from benchmarks.cameras import CASES, clips  # noqa: E402
from deltaconvert.text import table  # noqa: E402
from deltaconvert.watching import measure  # noqa: E402


def main() -> None:
    options = arguments()
    command = shlex.join(["python", "benchmarks/streams.py", *sys.argv[1:]])
    facts: dict[str, Any] = {**measure.environment(), "command": command, "device": device_name(options)}
    names = options.networks.split(",")
    crews = {name: [Worker(name, options, gpu) for gpu in range(max(options.workers))] for name in names}
    for first, *_ in crews.values():  # all networks at once; they are measured in turn
        first.begin("prepare")
    rows = facts["results"] = [first.answer() for first, *_ in crews.values()]
    print(f"{len(rows)} prepared", flush=True)
    for row, (first, *_) in zip(rows, crews.values(), strict=True):
        if options.batches:  # first of all networks: their engines make room for pools
            row["dense"] = first.measure("dense")
    for row, crew in zip(rows, crews.values(), strict=True):
        try:
            for _ in served(row, crew, options.workers):
                if options.out:  # what is known so far
                    options.out.write_text(json.dumps(facts, indent=1) + "\n")
        except EOFError:
            print(f"{row['network']}: a worker died", flush=True)
        for worker in crew:
            worker.end()
        print(tables(facts), flush=True)


def served(row: dict[str, Any], crew: Sequence[Worker], numbers: Sequence[int]) -> Iterator[None]:
    """What each of the first workers serves while so many of them do and the others wait, for each of the numbers."""
    first, *others = crew
    first.measure("ready")  # the others find in caches what it compiled and measured
    for worker in others:  # pools that are made beside a measurement would disturb it
        worker.begin("ready")
    for worker in others:
        worker.answer()
    found = row["served"] = dict[str, Any]()
    for number in numbers:
        for worker in crew[:number]:
            worker.begin("delta")
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
    parser.add_argument("--profile", action="store_true", help="print what a step's time goes to")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def make_room() -> None:
    """Give back to the device what nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


def listed(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


class Worker:
    """A process that prepares a network, and then measures what it is asked for: it may have to wait for others."""

    def __init__(self, name: str, options: argparse.Namespace, gpu: int):
        spawn = multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        self._process = spawn.Process(target=work, args=(theirs, name, options, gpu), daemon=True)
        self._process.start()
        theirs.close()  # so that a process that died ends the line

    def begin(self, what: str) -> None:
        self._line.send(what)

    def answer(self) -> Any:
        return self._line.recv()

    def measure(self, what: str) -> Any:
        self.begin(what)
        return self.answer()

    def end(self) -> None:
        """And wait for it: the next one needs its memory."""
        with suppress(BrokenPipeError):
            self._line.send(None)
        self._process.join(10)
        self._process.kill()  # compilers that it started keep some waiting


def work(line: Any, name: str, options: argparse.Namespace, gpu: int) -> None:
    if max(options.workers) > 1:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[gpu] if shown else str(gpu)
    bench = Bench(name, options)
    while (what := line.recv()) is not None:
        found = getattr(bench, what)()
        print(name, gpu, what, found, flush=True)
        line.send(found)


class Bench:
    """A network and its clips; what takes memory or long comes when it is asked for."""

    def __init__(self, name: str, options: argparse.Namespace):
        kind, device = gpu_dense.TYPES[options.type], options.device
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.type == "tf32"
        torch.backends.cudnn.benchmark = device == "cuda"
        self._name, self._options = name, options
        self._model = CASES[name].make().eval().to(device, kind)
        self._images = clips(name, options.size, device, range(options.frames))
        if options.frames_in == "device":
            self._images = [[frame.to(device) for frame in clip] for clip in self._images]
        file = Path(options.thresholds) / f"{name}.json"
        self._threshold: Any = str(file) if file.exists() else {"input": float(options.thresholds)}
        self._delta: deltaconvert.DeltaModel | None = None
        self._servers: list[Batched] = []
        self._pool: Pooled | None = None
        self._capacity = options.capacity or CASES[name].slots
        self._guess, self._part = options.guess or max(1, 3 * self._capacity // 4), 0.2
        self._facts: dict[str, Any] = {}  # of the pool, for so many cameras as it served first

    def prepare(self) -> dict[str, Any]:
        """Convert the network, and make the dense engines."""
        options, example = self._options, self._images[0][0].to(self._options.device)
        self._delta = deltaconvert.convert(self._model, example, threshold=self._threshold)
        batches = [int(batch) for batch in options.batches.split(",") if batch]
        self._servers = [
            Batched(self._model, self._delta.graph, example, batch, options) for batch in batches
        ]
        return {
            "network": self._name,
            "size": list(example.shape[1:3]),
            "type": options.type,
            "fps": options.fps,
            "frames in": options.frames_in,
            "threshold": self._threshold,
        }

    def dense(self) -> dict[str, Any]:
        """Of the batch that is the fastest for a frame, among those that leave time for a frame to wait for one."""
        options, budget = self._options, BUDGET_MS * 30 / self._options.fps
        tried = {server.facts["batch"]: server.facts["batch_ms"] for server in self._servers}
        batch = max(tried, key=lambda batch: (2 * tried[batch] <= budget, batch / tried[batch]))
        (server,) = (server for server in self._servers if server.facts["batch"] == batch)
        self._servers.clear()
        guess = int(0.95 * batch / tried[batch] * 1e3 / options.fps)
        found = server.facts | self._most(server, guess, 4096)
        self._guess = options.guess or 4 * found["cameras"]
        del server
        make_room()
        return {**found, "ms of each batch": tried}

    def ready(self) -> None:
        """Make the pool: it takes as long as converting."""
        if self._delta is None:
            self.prepare()
        assert self._delta is not None
        self._pool = self._pool or Pooled(self._delta, self._capacity, self._options.pools)
        make_room()  # what planning took

    def delta(self) -> dict[str, Any]:
        self.ready()
        pool = self._pool
        assert pool is not None and self._delta is not None
        found = self._most(pool, self._guess, self._capacity)
        self._guess, self._part = max(1, found["cameras"]), 0.05
        if self._options.profile:
            profile(pool, self._images, self._guess, self._options)
        self._facts = self._facts or pool.facts(
            self._delta, self._images, self._guess, CASES[self._name].features
        )
        return {**found, "capacity": self._capacity, **self._facts}

    def _most(self, server: Server, guess: int, limit: int) -> dict[str, Any]:
        return most(lambda count: Trial(server, count, self._images, self._options), guess, limit, self._part)


def profile(pool: Pooled, images: list[list[Tensor]], cameras: int, options: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    pool.begin(cameras)
    for step in range(12):
        if step == 7:
            watching = profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
            watching.__enter__()
        for camera in range(cameras):
            pool.put(camera, frame_of(images, camera, step))
        begun = time.perf_counter()
        pool.launch()
        host = time.perf_counter() - begun
        if options.device == "cuda":
            torch.cuda.synchronize()
    watching.__exit__(None, None, None)
    print(f"host {host * 1e3:.2f} ms a step of {cameras}")
    for key in ("self_device_time_total", "self_cpu_time_total"):
        print(watching.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)[:7000])


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
    """The cameras that a worker serves; with a + where it has no slot for more."""
    return str(worker["cameras"]) + "+" * (worker["cameras"] == worker["capacity"])


if __name__ == "__main__":
    main()
