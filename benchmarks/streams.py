"""Cameras that one machine serves: 30 frames a second each, the 99th percentile of a step under 33 ms.

    python benchmarks/streams.py --out FILE [--networks resnet50,...] [--device cuda --type half] [--thresholds FILE]

Each camera plays one of the clips of ../shared/data/videos from another place, over and over. Dense batches one frame
of every camera through the best dense engine for that batch; delta is a StreamPool. Frames lie in memory in the
network's type before the clock starts. The number of cameras is doubled until a step takes too long, then bisected.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
import model_zoo  # noqa: E402
from benchmarks import engines, gpu_dense  # noqa: E402
from deltaconvert import measure, video  # noqa: E402
from deltaconvert.report import table  # noqa: E402

VIDEOS = ROOT.parent / "shared" / "data" / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4", "sam2_04_coffee.mp4", "bgs_video.avi")
SIZES = {"fastestdet": (736, 960)}
SIZE = (1080, 1920)
BUDGET_MS = 1000 / 30
WARM = 10  # steps
APART = 17  # frames of its clip from one camera to the next

Serve = Callable[[Sequence[Tensor]], Any]


def main() -> None:
    options = arguments()
    facts: dict[str, Any] = {**measure.environment(), "device": device_name(options), "results": []}
    for name in options.networks.split(","):
        facts["results"].append(row(name, options))
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(tables(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet50,mobilenetv2,fastestdet")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--type", choices=tuple(gpu_dense.TYPES), default="float")
    parser.add_argument("--size", help="HxW instead of 1080x1920")
    parser.add_argument(
        "--thresholds", default="0.04", help="a number for the input, or a file of thresholds"
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument("--most", type=int, default=256, help="cameras")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    size = tuple(map(int, options.size.split("x"))) if options.size else SIZES.get(name, SIZE)
    model = network(name, options)
    images = clips(name, size, options)
    example = images[0][0]
    threshold = options.thresholds
    delta = deltaconvert.convert(
        model, example, threshold=threshold if threshold.endswith(".json") else {"input": float(threshold)}
    )
    found: dict[str, Any] = {
        "network": name,
        "size": list(size),
        "type": options.type,
        "threshold": threshold,
    }
    ways: dict[str, Callable[[int], Serve]] = {
        "dense": lambda count: dense(model, delta, example, count, options),
        "delta": lambda count: pooled(delta, count),
    }
    for way, make in ways.items():

        def milliseconds(count: int, make: Callable[[int], Serve] = make) -> float:
            return p99(make(count), cast(images, count), options.steps)

        cameras, tried = most(milliseconds, options.most)
        found[way] = {"cameras": cameras, "p99_ms": tried}
    found["ratio"] = found["delta"]["cameras"] / max(1, found["dense"]["cameras"])
    return found


def most(milliseconds: Callable[[int], float], limit: int) -> tuple[int, dict[int, float]]:
    """(the largest number of cameras within the budget, what each number tried took)."""
    tried: dict[int, float] = {}

    def fits(count: int) -> bool:
        tried[count] = milliseconds(count)
        return tried[count] <= BUDGET_MS

    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, tried


def p99(serve: Serve, frames: Iterator[list[Tensor]], steps: int) -> float:
    """Milliseconds of a step that 99 % of the steps stay under."""
    times = []
    for number in range(WARM + steps):
        step = next(frames)
        synchronize(step[0])
        start = time.perf_counter()
        serve(step)
        synchronize(step[0])
        if number >= WARM:
            times.append((time.perf_counter() - start) * 1e3)
    return measure.quantile(times, 0.99)


def pooled(delta: deltaconvert.DeltaModel, cameras: int) -> Serve:
    pool = deltaconvert.StreamPool(delta, cameras)
    for camera in range(cameras):
        pool.join(camera)

    def serve(frames: Sequence[Tensor]) -> Any:
        for camera, frame in enumerate(frames):
            pool.put(camera, frame)
        return pool.step()

    return serve


def dense(
    model: torch.nn.Module,
    delta: deltaconvert.DeltaModel,
    example: Tensor,
    cameras: int,
    options: argparse.Namespace,
) -> Serve:
    """The fastest dense engine for a batch of one frame of every camera."""
    batch = example.expand(cameras, *example.shape[1:]).contiguous()
    if options.device == "cuda":
        # Engines replay a graph on their own frame: the fastest is found by that, and served with a copy into it.
        batch = batch.contiguous(memory_format=torch.channels_last)
        runs = gpu_dense.engines(model, batch, tuple(gpu_dense.MODES))
        best = min(runs, key=lambda name: gpu_dense.median_ms(runs[name], batch, 5))
        return lambda frames: runs[best](torch.cat(list(frames), out=batch))
    ready = engines.prepare(
        engines.Network(model, delta.graph, batch, torch.get_num_threads()), list(engines.ENGINES)
    ).ready
    calls = {name: engine(batch) for name, engine in ready.items()}
    best = min(calls, key=lambda name: min(measure.timed(calls[name])[1] for _ in range(3)))
    return lambda frames: ready[best](torch.cat(list(frames)))()


def clips(name: str, size: tuple[int, int], options: argparse.Namespace) -> list[list[Tensor]]:
    """Frames (1, C, H, W) of every clip, as the network takes them."""
    recipe, found = model_zoo.recipe(name), []
    for file in CLIPS:
        if not (VIDEOS / file).exists():
            raise SystemExit(f"the clips are not there: {VIDEOS / file}")
        with video.read(VIDEOS / file, limit=options.frames) as frames:
            found.append([prepared(recipe, frame, size, options) for frame in frames])
    return found


def prepared(recipe: Any, frame: Tensor, size: tuple[int, int], options: argparse.Namespace) -> Tensor:
    image = F.interpolate(frame.permute(2, 0, 1)[None].float(), size, mode="nearest")
    x = recipe.prepare(image[0].permute(1, 2, 0).to(torch.uint8))
    return x.to(options.device, gpu_dense.TYPES[options.type])


def cast(images: list[list[Tensor]], cameras: int) -> Iterator[list[Tensor]]:
    """The frames of each step: one of every camera."""
    step = 0
    while True:
        places = [(images[camera % len(images)], step + APART * camera) for camera in range(cameras)]
        yield [clip[place % len(clip)] for clip, place in places]
        step += 1


def network(name: str, options: argparse.Namespace) -> torch.nn.Module:
    if options.device == "cuda":
        return gpu_dense.network(name, options.type)
    return model_zoo.create(name, seed=0)


def device_name(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"


def synchronize(frame: Tensor) -> None:
    if frame.is_cuda:
        torch.cuda.synchronize()


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
