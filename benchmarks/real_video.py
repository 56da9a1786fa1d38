"""Trained networks on real clips of ../shared/data: cost, and agreement with the dense network in the same run.

    python benchmarks/real_video.py --networks mobilenetv2 [--frames 150] [--engines openvino] [--out FOLDER]
    python benchmarks/real_video.py --markdown benchmarks/results/real_video    # the table of docs/real_video.md

For each rule of thresholds it measures

- the share of multiply-accumulates,
- milliseconds per frame: interleaved medians, against the best of the wanted engines of engines.py,
- relative L2 over all frames,
- agreement with the dense network in what its users look at: F1 of boxes (IoU 0.5), the share of frames with the same
  top-1 class, of pixels with the same label, or of pixels within half a grey level.

Writes FOLDER/NETWORK.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.engines import Engine, Network, prepare
from benchmarks.gpu_record import markdown
from deltaconvert import video
from deltaconvert.watching.measure import timed

THREADS = 2
LEVELS = {
    "fastestdet": 10,
    "mobilenetv2": 10,
    "espnet_city": 10,
    "dncnn_s25": 5,
}  # the input's threshold, grey levels
TITLES = {
    "fastestdet": "FastestDet, PETS",
    "mobilenetv2": "MobileNetV2, bottle",
    "espnet_city": "ESPNet, road",
    "dncnn_s25": "DnCNN, PETS",
}


@dataclass(frozen=True)
class Clip:
    """A network, its clip, and how a frame (1 3 H W, RGB, 0 to 255) becomes its input."""

    video: str
    prepare: Callable[[Tensor], Tensor]
    unit: float  # one grey level of the frame, in the units of the input
    agreement: Callable[[Any, Any], tuple[int, int, int]]  # (hits, ours, dense's) of one frame
    first: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(LEVELS))
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--out", type=Path, help="a folder")
    parser.add_argument("--markdown", type=Path, help="print the table of such a folder, and run nothing")
    options = parser.parse_args()
    if options.markdown:
        return print(page_table(options.markdown))
    if not DATA.is_dir():
        raise SystemExit(f"there is no {DATA}: benchmarks/README.md says what it holds")
    sys.path.insert(0, str(DATA))
    import zoo  # our re-implementations of the networks

    torch.set_num_threads(THREADS)
    for name in options.networks.split(","):
        facts = run(zoo.load(name), name, options.frames, options.engines.split(","))
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name}.json").write_text(json.dumps({**environment(), **facts}, indent=1) + "\n")


def run(model: torch.nn.Module, name: str, count: int, wanted: list[str]) -> dict[str, Any]:
    """A row for each rule; all share the same engines."""
    clip, levels = clips()[name], LEVELS[name]
    frames = list(frames_of(clip, count))
    frame = frames[0]
    graph = deltaconvert.convert(model, frame, backend="reference").graph
    engines = prepare(Network(model, graph, frame, THREADS), wanted)
    rules: dict[str, dict[str, float | str]] = {
        "exact": {},
        f"input {levels}/255": {"input": levels * clip.unit},
        f"input {levels}/255, activations 3%": {"input": levels * clip.unit, "activation": "3%"},
        f"input {levels}/255, activations 10%": {"input": levels * clip.unit, "activation": "10%"},
    }
    rows = []
    for label, rule in rules.items():
        rows.append({"rule": label, **measure(model, clip, rule, frames, engines.ready)})
        print(name, json.dumps(rows[-1]), flush=True)
    size = "x".join(map(str, frame.shape))
    return {"network": name, "clip": clip.video, "size": size, **engines.facts(), "results": rows}


def frames_of(clip: Clip, count: int) -> Iterator[Tensor]:
    pictures = video.read(DATA / "videos" / clip.video, limit=clip.first + count)
    for picture in itertools.islice(pictures, clip.first, None):
        yield clip.prepare(picture.permute(2, 0, 1)[None].float())


def measure(
    model: torch.nn.Module,
    clip: Clip,
    rule: dict[str, float | str],
    frames: Sequence[Tensor],
    engines: Mapping[str, Engine],
) -> dict[str, Any]:
    """Plays the same frames on the delta network and every engine in turns; the first two frames are not timed."""
    delta = deltaconvert.convert(model, frames[0], threshold=rule)
    times: dict[str, list[float]] = {name: [] for name in ("delta", *engines)}
    work, density, squares, total = [], [], 0.0, 0.0
    hits = ours = theirs = 0
    for frame in frames:
        with torch.inference_mode():
            outputs = {}
            for name, engine in engines.items():
                outputs[name], spent = timed(engine(frame))
                times[name].append(spent)
            got, spent = timed(delta, frame)
            times["delta"].append(spent)
        expected = next(iter(outputs.values()))
        stats = delta.stats()
        work.append(stats.work)
        density.append(stats.layers[0].density)
        squares += float((got - expected).square().sum())
        total += float(expected.square().sum())
        found = clip.agreement(got, expected)
        hits, ours, theirs = hits + found[0], ours + found[1], theirs + found[2]
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    best = min(engines, key=medians.__getitem__)
    return {
        "frames": len(work),
        "changed": statistics.fmean(density[1:]),
        "work": statistics.fmean(work[1:]),
        "medians_ms": medians,
        "best": best,
        "ratio": medians[best] / medians["delta"],
        "relative_l2": (squares / total) ** 0.5,
        "agreement": 2 * hits / (ours + theirs) if ours + theirs else 1.0,
    }


def page_table(folder: Path) -> str:
    head = ("network, clip", "frames", "thresholds", "changed pixels", "work", "best dense", "delta", "ratio")
    body = []
    for file in sorted(folder.glob("*.json")):
        facts = json.loads(file.read_text())
        for row in facts["results"]:
            medians = row["medians_ms"]
            body.append(
                (
                    f"{TITLES[facts['network']]} {facts['size']}",
                    str(row["frames"]),
                    row["rule"],
                    f"{row['changed']:.1%}",
                    f"{row['work']:.1%}",
                    f"{row['best']}, {medians[row['best']]:.0f} ms",
                    f"{medians['delta']:.0f} ms",
                    f"{row['ratio']:.2f}",
                    f"{row['relative_l2']:.2g}",
                    f"{row['agreement']:.3f}",
                )
            )
    return markdown((*head, "relative L2", "agreement"), body)


def clips() -> dict[str, Clip]:
    def detector(x: Tensor) -> Tensor:  # upscaled, as its authors do to find small people
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
    """Counts the pixels with the same class."""
    same = got.argmax(1) == expected.argmax(1)
    return int(same.sum()), same.numel(), same.numel()


def same_values(got: Tensor, expected: Tensor) -> tuple[int, int, int]:
    """Counts the pixels within half a grey level."""
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
