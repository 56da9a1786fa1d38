"""Cameras that one machine serves in real time: 30 frames a second each, 99 % of the answers within 33 ms.

    python benchmarks/streams.py --out FILE [--networks resnet50,...] [--device cuda --type half] [--thresholds FOLDER]
    python benchmarks/streams.py --workers 1,2,4 --device cuda ...   a process for each GPU: one serves, two, then four

Each camera plays one of the clips of ../shared/data/videos from another place, over and over, and has its own phase:
its frames arrive every 33.3 ms, whatever the server does. They are bytes in (pinned) host memory, as a decoder leaves
them, scaled to the network's size before the clock starts. Latency runs from a frame's arrival until the event behind
its output; each camera's first frame, a full one, comes before the clock runs. A frame that a newer one of its camera
replaces counts as never answered.

Both sides bring frames to the device on a stream of their own while a step runs, and take what waits when the one
before has ended. Dense: the fastest engine (CUDA graph, torch.compile in one; batch norm folded, channels last) for a
fixed batch, the oldest frames first; all `--batches` are tried. Delta: a StreamPool.
"""

from __future__ import annotations

import argparse
import copy
import gc
import heapq
import json
import math
import multiprocessing
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks import engines, gpu_dense  # noqa: E402
from benchmarks.cameras import CASES, clips  # noqa: E402
from deltaconvert import measure  # noqa: E402
from deltaconvert.arrivals import Arrivals  # noqa: E402
from deltaconvert.report import table  # noqa: E402

BUDGET_MS = 33.0
WARM = 0.7  # seconds
APART = 17  # frames of its clip from one camera to the next
HOPELESS = 0.03  # of the frames late: the trial ends


def main() -> None:
    options = arguments()
    command = shlex.join(["python", "benchmarks/streams.py", *sys.argv[1:]])
    facts: dict[str, Any] = {**measure.environment(), "command": command, "device": device_name(options)}
    names = options.networks.split(",")
    crews = {name: [Worker(name, options, gpu) for gpu in range(max(options.workers))] for name in names}
    for crew in crews.values():  # all prepare at once, and are measured in turn
        for worker in crew:
            worker.answer()
    rows = facts["results"] = [crew[0].measure("about") for crew in crews.values()]
    print(f"{len(rows)} prepared", flush=True)
    for row, crew in zip(rows, crews.values(), strict=True):
        if options.batches:  # first of all networks: their engines make room for pools
            row["dense"] = crew[0].measure("dense")
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
    for worker in crew:  # pools that are made beside a measurement would disturb it
        worker.begin("ready")
    for worker in crew:
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
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    bench = Bench(name, options)
    line.send("prepared")
    while (what := line.recv()) is not None:
        found = getattr(bench, what)()
        print(name, gpu, what, found, flush=True)
        line.send(found)


class Bench:
    """A network, its clips and its dense engines; the pool comes when it is asked for, since it takes the memory."""

    def __init__(self, name: str, options: argparse.Namespace):
        kind, device = gpu_dense.TYPES[options.type], options.device
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.type == "tf32"
        torch.backends.cudnn.benchmark = device == "cuda"
        model = CASES[name].make().eval().to(device, kind)
        self._name, self._options = name, options
        self._images = clips(name, options.size, device, range(options.frames))
        example = self._images[0][0].to(device)
        file = Path(options.thresholds) / f"{name}.json"
        self._threshold: Any = str(file) if file.exists() else {"input": float(options.thresholds)}
        self._delta = deltaconvert.convert(model, example, threshold=self._threshold)
        batches = [int(batch) for batch in options.batches.split(",") if batch]
        self._servers = [Batched(model, self._delta.graph, example, batch, options) for batch in batches]
        self._pool: Pooled | None = None
        self._capacity = options.capacity or CASES[name].slots
        self._guess = max(1, 3 * self._capacity // 4)

    def about(self) -> dict[str, Any]:
        (shape, _), *_ = self._delta.inputs
        options = self._options
        return {
            "network": self._name,
            "size": list(shape[1:3]),
            "type": options.type,
            "fps": options.fps,
            "threshold": self._threshold,
        }

    def dense(self) -> dict[str, Any]:
        """Of the batch that serves most."""
        found: dict[str, Any] = {"cameras": 0}
        while self._servers:
            server = self._servers.pop()
            guess = int(0.95 * server.facts["batch"] / server.facts["batch_ms"] * 1e3 / self._options.fps)
            served = server.facts | self._most(server, guess, 4096)
            found = max(served, found, key=lambda served: served["cameras"])
            self._guess = 4 * found["cameras"]
        make_room()
        return found

    def ready(self) -> None:
        """Make the pool: it takes as long as converting."""
        self._pool = self._pool or Pooled(self._delta, self._capacity)
        make_room()  # what planning took

    def delta(self) -> dict[str, Any]:
        self.ready()
        capacity, pool = self._capacity, self._pool
        assert pool is not None
        found = self._most(pool, self._guess, capacity)
        self._guess = cameras = max(1, found["cameras"])
        if self._options.profile:
            profile(pool, self._images, cameras, self._options)
        return {**found, "capacity": capacity, **pool.facts(self._delta, self._images, cameras)}

    def _most(self, server: Server, guess: int, limit: int) -> dict[str, Any]:
        return most(lambda count: Trial(server, count, self._images, self._options), guess, limit)


# ---- servers


class Server(Protocol):
    def begin(self, cameras: int) -> None: ...

    def put(self, camera: int, frame: Tensor) -> None: ...

    def launch(self) -> Sequence[int]:
        """Start a step; the cameras whose frames it took."""


class Batched:
    """The fastest dense engine for `batch` frames at a time."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.GraphModule,
        example: Tensor,
        batch: int,
        options: argparse.Namespace,
    ):
        """graph: the network in its normal form."""
        self._arrivals, self._waiting = Arrivals(torch.device(options.device)), dict[int, Tensor]()
        self._batch = example.to(options.device).repeat(batch, 1, 1, 1)
        self._rows = self._batch.split(1)
        name, self._run, seconds = fastest(model, graph, self._batch, options)
        self.facts = {"batch": batch, "engine": name, "batch_ms": seconds * 1e3}

    def begin(self, cameras: int) -> None:
        self._waiting.clear()

    def put(self, camera: int, frame: Tensor) -> None:
        (self._waiting[camera],) = self._arrivals.bring([frame])  # in the order of the first that waits

    def launch(self) -> Sequence[int]:
        cameras = list(self._waiting)[: len(self._rows)]
        frames = [self._waiting.pop(camera) for camera in cameras]
        self._arrivals.wait(frames)
        torch._foreach_copy_(list(self._rows[: len(frames)]), frames)
        self._run(self._batch)
        return cameras


def fastest(
    model: nn.Module, graph: fx.GraphModule, batch: Tensor, options: argparse.Namespace
) -> tuple[str, Callable[[Tensor], Any], float]:
    """(name, run, seconds) of the fastest engine for a batch, which `run` reads when it is called."""
    if options.device == "cuda":
        graph = copy.deepcopy(graph).to(memory_format=torch.channels_last)
        runs = {"graph": lambda frames: graph(frames)[0]}
        torch.compiler.reset()
        runs["compile"] = torch.compile(runs["graph"], dynamic=False)
        with torch.no_grad():
            captured = {name: gpu_dense.captured(run, batch) for name, run in runs.items()}
        times = {name: gpu_dense.median_ms(run, batch) / 1e3 for name, run in captured.items()}
        best = min(times, key=lambda name: times[name])
        return best, captured[best], times[best]
    found = engines.prepare(
        engines.Network(model, graph, batch, torch.get_num_threads()), options.engines.split(",")
    )
    ready, seconds = found.ready, {}
    if not ready:
        raise SystemExit(f"no dense engine: {found.skipped}")
    for name, engine in ready.items():
        call = engine(batch)
        seconds[name] = min(measure.timed(call)[1] for _ in range(4)) / 1e3
    best = min(seconds, key=lambda name: seconds[name])
    return best, lambda frames: ready[best](frames)(), seconds[best]


class Pooled:
    """A StreamPool; cameras that do not play sleep in their slots."""

    def __init__(self, delta: deltaconvert.DeltaModel, capacity: int):
        self.pool = deltaconvert.StreamPool(delta, capacity, limit=capacity)
        self._last: dict[int, Tensor] = {}

    def begin(self, cameras: int) -> None:
        self._last.clear()
        for camera in self.pool.streams:
            self.pool.drop(camera)
        for camera in range(cameras):
            self.pool.join(camera)

    def put(self, camera: int, frame: Tensor) -> None:
        self.pool.put(camera, frame)
        self._last[camera] = frame

    def launch(self) -> Sequence[int]:
        results = self.pool.step()
        for result in results.values():
            if result.error is not None:
                raise result.error
        return list(results)

    def facts(
        self, delta: deltaconvert.DeltaModel, images: list[list[Tensor]], cameras: int
    ) -> dict[str, Any]:
        """How far outputs are from the dense network's, for the last frame of some cameras; memory; and of a frame but
        a camera's first the share of its pixels that changed and of a dense frame's work that it took."""
        self.begin(cameras)
        difference, density, before = measure.Difference(), [], (0, 0)
        for step in range(min(40, len(images[0]))):
            for camera in range(cameras):
                self.put(camera, frame_of(images, camera, step))
            self.launch()
            if step == 0:
                before = self._work()
            else:
                density.append(statistics.mean(stats.density for stats in self.pool.stats().values()))
        done, whole = (after - first for after, first in zip(self._work(), before, strict=True))
        with torch.no_grad():
            for camera in range(min(cameras, 8)):
                dense = delta.graph(self._last[camera].to(delta.device))
                difference.add(self.pool.latest(camera), dense)
        return {
            "density": statistics.mean(density),
            "work": done / whole * self.pool.capacity / cameras,
            "relative_l2": math.sqrt(difference.square / difference.reference),
            "state_mb": self.pool._batch.model.state_bytes / 2**20,
            "gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        }

    def _work(self) -> tuple[int, int]:
        """Multiply-accumulates of all steps so far, and of as many dense ones."""
        layers = self.pool._batch.model.stats().layers
        done = sum(layer.total_macs_done for layer in layers)
        return done, done + sum(layer.total_macs_skipped for layer in layers)


# ---- time


class Trial:
    """`count` cameras in real time. late: share of the frames that were not answered within the budget."""

    def __init__(self, server: Server, count: int, images: list[list[Tensor]], options: argparse.Namespace):
        self.count, self._server, self._images = count, server, images
        self._period = 1 / options.fps
        self._budget = BUDGET_MS / 1e3 * 30 / options.fps
        self._cuda = options.device == "cuda"
        self._latencies: list[float] = []
        self._steps: list[float] = []
        warm = max(WARM, 3 * self._period)
        self._expected = count * options.seconds * options.fps
        server.begin(count)
        gc.collect()
        gc.freeze()  # else a collection looks at all that torch.compile left: it takes longer than a frame may
        self._join()
        self._play(warm, options.seconds)

    def _join(self) -> None:
        """Each camera's first frame, a full one, before the clock runs: cameras do not come all at once."""
        for camera in range(self.count):
            self._server.put(camera, frame_of(self._images, camera, 0))
            self._server.launch()
        if self._cuda:
            torch.cuda.synchronize()

    def _play(self, warm: float, seconds: float) -> None:
        draw, clock = random.Random(0), time.perf_counter
        start = clock() + 0.01
        first, end = start + warm, start + warm + seconds
        arrivals = [(start + draw.random() * self._period, camera, 1) for camera in range(self.count)]
        heapq.heapify(arrivals)
        waiting: dict[int, float] = {}
        flying: tuple[Any, float, dict[int, float]] | None = None
        while arrivals or waiting or flying:
            while arrivals and arrivals[0][0] <= clock():
                due, camera, number = heapq.heappop(arrivals)
                if due > end:
                    continue
                self._server.put(camera, frame_of(self._images, camera, number))
                if waiting.pop(camera, first) > first:
                    self._latencies.append(math.inf)
                waiting[camera] = due
                heapq.heappush(arrivals, (due + self._period, camera, number + 1))
            if flying is not None and (flying[0] is None or flying[0].query()):
                now = clock()
                self._latencies += [now - due for due in flying[2].values() if due > first]
                self._steps.append(now - flying[1])
                flying = None
                if sum(x > self._budget for x in self._latencies) > HOPELESS * self._expected:
                    return
            if flying is None and waiting:
                begun = clock()
                taken = self._server.launch()
                event = torch.cuda.Event() if self._cuda else None
                if event is not None:
                    event.record()
                flying = event, begun, {camera: waiting.pop(camera) for camera in taken}

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return measure.quantile(sorted(self._latencies), 0.99) * 1e3

    @property
    def fits(self) -> bool:
        complete = len(self._latencies) > 0.9 * self._expected
        return complete and self.p99 <= self._budget * 1e3

    def facts(self) -> dict[str, float]:
        return {
            "p50_ms": measure.quantile(sorted(self._latencies), 0.5) * 1e3,
            "p99_ms": self.p99,
            "late": sum(x > self._budget for x in self._latencies) / max(1, len(self._latencies)),
            "step_ms": statistics.median(self._steps[len(self._steps) // 3 :]) * 1e3,
            "complete": len(self._latencies) / self._expected,
        }


def most(trial: Callable[[int], Any], guess: int, limit: int) -> dict[str, Any]:
    """The largest number of cameras that fits, within one or 2.5 %: from a guess outwards, then bisected."""
    tried: dict[int, Any] = {}

    def fits(count: int) -> bool:
        now = trial(count)
        tried[count] = now.facts()
        return bool(now.fits)

    low, high, probe = 0, limit + 1, max(1, min(guess, limit))
    stride = max(1, probe // 5)
    while high - low > max(1, low // 40):
        if fits(probe):
            low = probe
        else:
            high = probe
        if low > 0 and high <= limit:
            probe = (low + high) // 2
        else:
            probe = min(limit, low + stride) if low else max(1, high - stride)
            stride *= 2
    return {"cameras": low, "tried": tried}


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


def frame_of(images: list[list[Tensor]], camera: int, number: int) -> Tensor:
    clip = images[camera % len(images)]
    return clip[(number + APART * (camera // len(images))) % len(clip)]


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
