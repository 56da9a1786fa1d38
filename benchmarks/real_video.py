"""Trained networks on real clips of ../shared/data: cost, and agreement with the dense network in the same run.

    python benchmarks/real_video.py [--networks fastestdet,mobilenetv2] [--frames 150] [--out FILE]

For each rule of thresholds: share of multiply-accumulates, milliseconds a frame (medians, interleaved; dense is the
same graph in channels_last with batch norm folded), relative L2 over all frames, and what a user of that network
looks at (agreement): F1 of its boxes against the dense network's (IoU 0.5), the share of frames with the same top-1
class, of pixels with the same label, of pixels within half a grey level.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path[:0] = [str(ROOT), str(DATA)]

import deltaconvert  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from benchmarks.engines import folded  # noqa: E402
from deltaconvert import video  # noqa: E402
from deltaconvert.measure import timed  # noqa: E402
from deltaconvert.text import table  # noqa: E402


@dataclass(frozen=True)
class Clip:
    """A network, its clip, and how a frame (1 3 H W, RGB, 0 to 255) becomes its input."""

    video: str
    prepare: Callable[[Tensor], Tensor]
    unit: float  # one grey level of the frame, in the units of the input
    agreement: Callable[[Any, Any], tuple[int, int, int]]  # (hits, ours, dense's) of one frame
    first: int = 0


def main() -> None:
    import zoo  # our re-implementations of the networks, in ../shared/data

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="fastestdet,mobilenetv2,espnet_city,dncnn_s25")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in options.networks.split(","):
        clip = clips()[name]
        levels = 10 if name != "dncnn_s25" else 5
        rules: dict[str, dict[str, float | str]] = {
            "exact": {},
            f"input {levels}/255": {"input": levels * clip.unit},
            f"input {levels}/255, activations 3%": {"input": levels * clip.unit, "activation": "3%"},
            f"input {levels}/255, activations 10%": {"input": levels * clip.unit, "activation": "10%"},
        }
        for label, rule in rules.items():
            row = {
                "network": name,
                "clip": clip.video,
                "rule": label,
                **measure(zoo.load(name), clip, rule, options.frames),
            }
            rows.append(row)
            print(
                table(list(row), [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]]),
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps({**environment(), "results": rows}, indent=1) + "\n")


def measure(model: torch.nn.Module, clip: Clip, rule: dict[str, float | str], count: int) -> dict[str, Any]:
    delta, dense, work, density = None, None, [], []
    times: dict[str, list[float]] = {"dense": [], "delta": []}
    hits = ours = theirs = 0
    squares = [0.0, 0.0]
    frame = torch.empty(0)
    for index, picture in enumerate(video.read(DATA / "videos" / clip.video, limit=clip.first + count)):
        if index < clip.first:
            continue
        frame = clip.prepare(picture.permute(2, 0, 1)[None].float())
        if delta is None:
            delta = deltaconvert.convert(model, frame, threshold=rule)
            dense = folded(delta.graph)
        assert dense is not None
        with torch.inference_mode():
            nhwc = frame.contiguous(memory_format=torch.channels_last)
            (expected,), spent = timed(dense, nhwc)
            times["dense"].append(spent)
            got, spent = timed(delta, frame)
            times["delta"].append(spent)
        stats = delta.stats()
        work.append(stats.work)
        density.append(stats.layers[0].density)
        squares[0] += float((got - expected).square().sum())
        squares[1] += float(expected.square().sum())
        found = clip.agreement(got, expected)
        hits, ours, theirs = hits + found[0], ours + found[1], theirs + found[2]
    medians = {key: statistics.median(values[2:]) for key, values in times.items()}
    return {
        "frames": len(work),
        "size": "x".join(map(str, frame.shape)),
        "changed": statistics.fmean(density[1:]),
        "work": statistics.fmean(work[1:]),
        "dense_ms": medians["dense"],
        "delta_ms": medians["delta"],
        "ratio": medians["dense"] / medians["delta"],
        "relative_l2": (squares[0] / squares[1]) ** 0.5,
        "agreement": 2 * hits / (ours + theirs) if ours + theirs else 1.0,
    }


def clips() -> dict[str, Clip]:
    def detector(x: Tensor) -> Tensor:  # upscaled as its authors do for small people
        return F.interpolate(x.flip(1) / 255, size=(736, 960), mode="bilinear")

    def streets(x: Tensor) -> Tensor:
        mean, std = torch.tensor([72.39, 82.91, 73.16]), torch.tensor([45.32, 46.15, 44.91])
        x = (x.flip(1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1) / 255
        return x[:, :, : x.shape[2] // 8 * 8, : x.shape[3] // 8 * 8]

    return {
        "fastestdet": Clip("pets_vtest_480x360.mp4", detector, 1 / 255, same_boxes),
        "mobilenetv2": Clip(
            "intel_bottle-detection.mp4", lambda x: x / 127.5 - 1, 1 / 127.5, same_class, 300
        ),
        "espnet_city": Clip("bgs_video.avi", streets, 1 / 255 / 45, same_labels),
        "dncnn_s25": Clip(
            "pets_vtest_480x360.mp4", lambda x: x.mean(1, keepdim=True) / 255, 1 / 255, same_values
        ),
    }


def same_class(got: Tensor, expected: Tensor) -> tuple[int, int, int]:
    return int(got.argmax() == expected.argmax()), 1, 1


def same_labels(got: Tensor, expected: Tensor) -> tuple[int, int, int]:
    """Pixels with the same class."""
    same = got.argmax(1) == expected.argmax(1)
    return int(same.sum()), same.numel(), same.numel()


def same_values(got: Tensor, expected: Tensor) -> tuple[int, int, int]:
    """Pixels within half a grey level."""
    return int(((got - expected).abs() < 0.5 / 255).sum()), got.numel(), got.numel()


def same_boxes(got: Tensor, expected: Tensor) -> tuple[int, int, int]:
    from model_zoo.fastestdet import decode

    (a,), (b,) = decode(got, confidence=0.5), decode(expected, confidence=0.5)
    hits, taken = 0, set()
    for box in a:
        for place, other in enumerate(b):
            if place not in taken and box[5] == other[5] and overlap(box, other) > 0.5:
                hits += 1
                taken.add(place)
                break
    return hits, len(a), len(b)


def overlap(a: Tensor, b: Tensor) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = float(width.clamp(min=0) * height.clamp(min=0))
    return shared / float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"{time.time() - started:.0f} s")
