"""Cameras that one machine serves in real time: 30 frames a second each, 99 % of the answers within 33 ms.

    python benchmarks/streams.py --out FILE [--networks resnet50,...] [--device cuda --type half] [--thresholds FOLDER]
    python benchmarks/streams.py calibrate --thresholds FOLDER      thresholds for these networks, on other frames

Each camera plays one of the clips of ../shared/data/videos from another place, over and over, and has its own phase:
its frames arrive every 33.3 ms, whatever the server does. They are bytes in (pinned) host memory, as a decoder leaves
them, scaled to the network's size before the clock starts. Latency runs from a frame's arrival until the event behind
its output. A frame that a newer one of its camera replaces counts as never answered.

Both sides bring frames to the device on a stream of their own while a step runs, and take what waits when the one
before has ended. Dense: the fastest engine (CUDA graph, torch.compile in one; batch norm folded, channels last) for a
fixed batch, the oldest frames first; all `--batches` are tried. Delta: a StreamPool.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import heapq
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path[:0] = [str(ROOT), str(DATA)]

import deltaconvert  # noqa: E402
import model_zoo  # noqa: E402
from benchmarks import engines, gpu_dense  # noqa: E402
from benchmarks.accuracy import CONFIDENCE, box_loss, clip_of  # noqa: E402
from deltaconvert import measure  # noqa: E402
from deltaconvert.arrivals import Arrivals  # noqa: E402
from deltaconvert.calibrate import Search  # noqa: E402
from deltaconvert.gate import Gate  # noqa: E402
from deltaconvert.metrics import relative_l2  # noqa: E402
from deltaconvert.report import table  # noqa: E402
from deltaconvert.thresholds import Thresholds  # noqa: E402
from deltaconvert.trials import Trials  # noqa: E402
from model_zoo.fastestdet import decode as decode_boxes  # noqa: E402

VIDEOS = DATA / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4", "sam2_04_coffee.mp4", "bgs_video.avi")
SIZES = {"fastestdet": (736, 960)}
SIZE = (1080, 1920)
BUDGET_MS = 33.0
WARM = 0.7  # seconds
APART = 17  # frames of its clip from one camera to the next
HOPELESS = 0.03  # of the frames late: the trial ends
CALIBRATED = range(90, 96)  # frames of each clip; the first ones are played


class OfBytes(nn.Module):
    """uint8 frames (N, H, W, 3) to what the network was trained on: times `scale`, minus `shift`, by channel."""

    def __init__(self, network: nn.Module, scale: Sequence[float], shift: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))

    def forward(self, frames: Tensor) -> Any:
        return self.network(frames.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale - self.shift)


@dataclass(frozen=True)
class Case:
    """A network, and how its thresholds are calibrated.

    sites: where it has any, beside the input: each costs a comparison of the whole map, so few and where masks have
    grown. budget: of the metric, as benchmarks/accuracy.py has it. headless: without the mean over the map and what
    follows it: under random weights the scores hardly see what moves, and would let thresholds grow without end.
    """

    make: Callable[[], nn.Module]
    budget: float
    sites: Sequence[str] = ()
    headless: bool = False
    metric: Callable[[Sequence[Any], Sequence[Any]], float] = relative_l2
    decode: Callable[[Any], Any] | None = None
    bgr: bool = False


def resnet50() -> nn.Module:
    recipe = model_zoo.recipe("resnet50")
    scale = [recipe.scale / std for std in recipe.std]
    shift = [mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
    return OfBytes(model_zoo.create("resnet50", seed=0), scale, shift)


def trained(name: str, scale: float, shift: float) -> nn.Module:
    import zoo

    return OfBytes(zoo.load(name), [scale] * 3, [shift] * 3)


def detection(ours: Sequence[Any], dense: Sequence[Any]) -> float:
    return box_loss(range(80))(*([image for batch in found for image in batch] for found in (ours, dense)))


CASES = {
    "resnet50": Case(
        resnet50,
        0.02,
        ["network.relu", *(f"network.layer{n}.{last}.relu3" for n, last in ((1, 2), (2, 3), (3, 2), (3, 5)))],
        headless=True,
    ),
    "mobilenetv2": Case(lambda: trained("mobilenetv2", 1 / 127.5, 1.0), 0.1),
    "fastestdet": Case(
        lambda: trained("fastestdet", 1 / 255, 0.0),
        0.02,
        metric=detection,
        decode=lambda output: decode_boxes(output.cpu(), confidence=CONFIDENCE),
        bgr=True,
    ),
}


def main() -> None:
    options = arguments()
    if options.action == "calibrate":
        for name in options.networks.split(","):
            calibrate(name, options)
        return
    facts: dict[str, Any] = {**measure.environment(), "device": device_name(options), "results": []}
    for name in options.networks.split(","):
        facts["results"].append(row(name, options))
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(tables(facts), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("run", "calibrate"), default="run")
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
    parser.add_argument("--batches", default="8", help="of the dense engines")
    parser.add_argument("--capacity", type=int, default=64, help="streams that the pool is made for")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a trial, after warming up")
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument("--lock", type=Path, help="a file that the timed part holds")
    parser.add_argument("--profile", action="store_true", help="print what a step's time goes to")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    model, images = network(name, options), clips(name, options, range(options.frames))
    example = images[0][0].to(options.device)
    file = Path(options.thresholds) / f"{name}.json"
    threshold = str(file) if file.exists() else {"input": float(options.thresholds)}
    delta = deltaconvert.convert(model, example, threshold=threshold)
    found: dict[str, Any] = {
        "network": name,
        "size": list(example.shape[1:3]),
        "type": options.type,
        "fps": options.fps,
        "threshold": threshold,
        "dense": {"cameras": 0},
    }
    batches = map(int, options.batches.split(","))
    servers = [Batched(model, delta.graph, example, batch, options) for batch in batches]
    print(name, "is prepared", flush=True)
    with turn(options.lock):
        while servers:
            served = dense(servers.pop(), images, options)
            print(name, "dense", served, flush=True)
            found["dense"] = max(found["dense"], served, key=lambda served: served["cameras"])
        found["delta"] = pooled(delta, images, 3 * found["dense"]["cameras"], options)
    found["ratio"] = found["delta"]["cameras"] / max(1, found["dense"]["cameras"])
    print(name, "delta", found["delta"], flush=True)
    return found


def dense(server: Batched, images: list[list[Tensor]], options: argparse.Namespace) -> dict[str, Any]:
    guess = int(server.facts["batch"] / server.facts["batch_ms"] * 1e3 / options.fps)
    return server.facts | most(lambda count: Trial(server, count, images, options), guess, 4096)


def pooled(
    delta: deltaconvert.DeltaModel, images: list[list[Tensor]], guess: int, options: argparse.Namespace
) -> dict[str, Any]:
    pool = Pooled(delta, options.capacity)
    found = most(lambda count: Trial(pool, count, images, options), guess, options.capacity)
    cameras = max(1, found["cameras"])
    if options.profile:
        profile(pool, images, cameras, options)
    return {**found, "capacity": options.capacity, **pool.facts(delta, images, cameras)}


@contextmanager
def turn(file: Path | None) -> Iterator[None]:
    """Alone with the machine among those that have the same lock: they prepare beside each other."""
    if file is None:
        yield
        return
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        times = {name: gpu_dense.median_ms(run, batch, 9) / 1e3 for name, run in captured.items()}
        best = min(times, key=lambda name: times[name])
        return best, captured[best], times[best]
    ready = engines.prepare(
        engines.Network(model, graph, batch, torch.get_num_threads()), list(engines.ENGINES)
    ).ready
    seconds = {}
    for name, engine in ready.items():
        call = engine(batch)
        seconds[name] = min(measure.timed(call)[1] for _ in range(4)) / 1e3
    best = min(seconds, key=lambda name: seconds[name])
    return best, lambda frames: ready[best](frames)(), seconds[best]


class Pooled:
    """A StreamPool; cameras that do not play sleep in their slots."""

    def __init__(self, delta: deltaconvert.DeltaModel, capacity: int):
        self.pool = deltaconvert.StreamPool(delta, capacity)
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
        """How far outputs are from the dense network's, for the last frame of some cameras; density and memory."""
        self.begin(cameras)
        difference, density = measure.Difference(), []
        for step in range(40):
            for camera in range(cameras):
                self.put(camera, frame_of(images, camera, step))
            self.launch()
            if step:
                density.append(statistics.mean(stats.density for stats in self.pool.stats().values()))
        with torch.no_grad():
            for camera in range(min(cameras, 8)):
                dense = delta.graph(self._last[camera].to(delta.device))
                difference.add(self.pool.latest(camera), dense)
        return {
            "density": statistics.mean(density),
            "relative_l2": math.sqrt(difference.square / difference.reference),
            "state_mb": self.pool._model.state_bytes / 2**20,
            "gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        }


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
        warm = WARM * 30 / options.fps
        self._expected = count * options.seconds * options.fps
        server.begin(count)
        self._play(warm, options.seconds)

    def _play(self, warm: float, seconds: float) -> None:
        draw, clock = random.Random(0), time.perf_counter
        start = clock() + 0.01
        first, end = start + warm, start + warm + seconds
        arrivals = [(start + draw.random() * self._period, camera, 0) for camera in range(self.count)]
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


# ---- frames


def frame_of(images: list[list[Tensor]], camera: int, number: int) -> Tensor:
    clip = images[camera % len(images)]
    return clip[(number + APART * (camera // len(images))) % len(clip)]


def clips(
    name: str, options: argparse.Namespace, numbers: Sequence[int], files: Sequence[str] = CLIPS
) -> list[list[Tensor]]:
    """Frames (1, H, W, 3) of every clip, as a decoder leaves them: in the memory of the host, pinned for a GPU."""
    size = tuple(map(int, options.size.split("x"))) if options.size else SIZES.get(name, SIZE)
    found = []
    for file in files:
        if not (VIDEOS / file).exists():
            raise SystemExit(f"the clips are not there: {VIDEOS / file}")
        frames = (frame.flip(2) if CASES[name].bgr else frame for frame in clip_of(file)(numbers))
        found.append([scaled(frame, size, options.device) for frame in frames])
    return found


def scaled(frame: Tensor, size: tuple[int, ...], device: str) -> Tensor:
    """Bilinear, every pixel of a frame by itself: the codec's noise stays in it, as it does for a player."""
    image = F.interpolate(frame.permute(2, 0, 1)[None].to(device).float(), size, mode="bilinear")
    image = image.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
    return image.pin_memory() if device == "cuda" else image


def network(name: str, options: argparse.Namespace) -> nn.Module:
    kind = options.type
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    torch.backends.cudnn.benchmark = options.device == "cuda"
    return CASES[name].make().eval().to(options.device, gpu_dense.TYPES[kind])


def calibrate(name: str, options: argparse.Namespace) -> None:
    """Thresholds within the case's budget, on a batch of all clips, of frames that are not played."""
    case = CASES[name]
    model = case.make().eval().to(options.device)
    if case.headless:
        model.network.avgpool = model.network.fc = nn.Identity().eval()
    videos = clips(name, options, CALIBRATED)
    frames = [torch.cat(batch).to(options.device) for batch in zip(*videos, strict=True)]
    delta = deltaconvert.convert(model, frames[0], backend="reference")
    trials = Trials(delta, [[frame] for frame in frames], case.metric, decode=case.decode)
    wanted = [site for site in trials.sites if site.kind == "input" or set(site.names) & set(case.sites)]
    assert len(wanted) == 1 + len(case.sites), [site.names for site in trials.sites]
    trials.sites = [
        replace(site, shares=None) for site in wanted
    ]  # by channels torch would compare, on a GPU
    search = Search(trials, case.budget)
    setting = search.allocate((Gate(),), rounds=1)
    outcome = search.look(setting)
    found = {"budget": case.budget, "loss": outcome.loss, "work": outcome.work, "trials": len(search.tried)}
    print(name, found, flush=True)
    rules = trials.thresholds(setting).rules
    folder = Path(options.thresholds)
    folder.mkdir(parents=True, exist_ok=True)
    Thresholds({**rules, "activation": 0.0}).write(folder / f"{name}.json", found=found)


def device_name(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"


def tables(facts: dict[str, Any]) -> str:
    head = ("network", "size", "dense cameras", "delta cameras", "times as many")
    body = [
        (
            r["network"],
            "x".join(map(str, r["size"])),
            str(r["dense"]["cameras"]),
            str(r["delta"]["cameras"]),
            f"{r['ratio']:.1f}",
        )
        for r in facts["results"]
    ]
    return table(head, body)


if __name__ == "__main__":
    main()
