"""Times trained networks at calibrated thresholds on a GPU: real clips at 1080p and batch 8, against the best dense
engine.

    python benchmarks/gpu_accuracy.py FOLDER [--tasks pets,road] [--batch 8] --out FILE

The thresholds are those of FOLDER/TASK_best.json, which do the least work at the accepted loss. If there is no such
file, because no thresholds lost so little, the network is converted exactly. The images of a batch are the clip at
eight places, enlarged to 1080p. Dense engines are those of gpu_dense.py, all in half precision. Neither side copies its
output out of the memory of its graph (`lend`).

The loss is the relative L2 of the task's features against the dense network's on the same frames. It is measured at the
timed size and at the size at which thresholds were found, since a gate's windows cover less of an enlarged picture.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.gpu import read
from benchmarks.gpu_dense import MODES, Run, engines, median_ms, raced, timed
from benchmarks.gpu_timeline import Launch, by_layer, noted, timeline
from benchmarks.tasks import TASKS, Task
from deltaconvert.gate import Gate
from deltaconvert.thresholds import Thresholds

SIZE = (1080, 1920)
SIZES = {"pets": (1088, 1920), "highway": (1088, 1920), "juggle": (1089, 1921), "bottle": (1088, 1920)}
DEVICE = "cuda"
APART = 20  # frames between the images of a batch
FIRST = 6  # frames that settle: full, captured, played
# A gate that averages frames settles after so many times `recent`: until then less passes (denoise .24, then .26).
AVERAGED = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=["compile"], help="of torch.compile")
    parser.add_argument("--warm", action="store_true", help="compile the dense networks and stop")
    parser.add_argument("--steps", action="store_true", help="what each kernel adds to a frame")
    parser.add_argument("--kept", type=Path, help="folder of what torch compiled, for later runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    facts = {"results": []} if options.warm else read(options.out)
    known = {row["task"] for row in facts["results"]}
    for name in options.tasks.split(","):
        thresholds = options.folder / f"{name}_best.json"
        if name in known:
            continue
        free_memory()
        row = measure(TASKS[name](4, 150), thresholds, options)
        if row is None:
            continue
        facts["results"].append(row)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(
            f"{name}: {row['ratio']:.2f}x, {row['delta_ms']:.2f} of {row['dense_ms']:.2f} ms, work {row['work']:.3f}"
        )
    ratios = [row["ratio"] for row in facts["results"]]
    if ratios:
        print(f"geometric mean of {len(ratios)}: {math.prod(ratios) ** (1 / len(ratios)):.2f}x")


@torch.no_grad()
def measure(task: Task, thresholds: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    batch, beside = options.batch, True
    while True:
        try:
            return at_batch(task, thresholds, batch, beside, options)
        except (torch.OutOfMemoryError, deltaconvert.DeltaConvertError) as error:
            if (batch == 1 and not beside) or "memory" not in str(error):
                raise
            print(f"{task.name}: batch {batch} does not fit{' beside the dense network' if beside else ''}")
        batch, beside = (batch, False) if beside else (batch // 2, True)
        free_memory()


def at_batch(
    task: Task, thresholds: Path, batch: int, beside: bool, options: argparse.Namespace
) -> dict[str, Any] | None:
    """beside: the dense network stays, to be timed again after the converted one; else it is dropped first."""
    rules = thresholds if thresholds.exists() else 0.0
    first = settling(rules)
    frames = batches(task, task.test, batch, options.frames + first, size_of(task))
    model = task.network.eval().to(DEVICE, torch.float16)
    still = frames[0].contiguous(memory_format=torch.channels_last)
    kept = {mode: options.kept / f"{task.name}-{batch}-{mode}.xz" for mode in options.modes if options.kept}
    dense, runs = raced(engines(model, frames[0], tuple(options.modes), kept), still)
    if options.warm:
        return None
    best = min(dense, key=lambda name: dense[name])
    if not beside:
        runs.clear()
        free_memory()
    delta, launches = converted(model, frames[0], rules)
    times, work = played(delta, frames[1:], first - 1)
    again = median_ms(runs[best], still) if beside else dense[best]
    row = {
        "task": task.name,
        "batch": batch,
        "shape": list(frames[0].shape),
        "best": best,
        "beside": beside,
        "dense_all_ms": dense,
        "dense_ms": again,
        "delta_ms": statistics.median(times),
        "p99_ms": sorted(times)[int(len(times) * 0.99)],
        "ratio": again / statistics.median(times),
        "work": work,
        "thresholds": thresholds.name if thresholds.exists() else None,
        "state_bytes": delta.stats().state_bytes,
        **(steps_of(delta, frames[-2:], launches) if options.steps else {}),
    }
    delta.reset()
    row["features_relative_l2"] = loss(task, delta, model, frames)
    count = len(frames)
    del delta, frames  # the next steps need their memory
    row["features_relative_l2_own_size"] = loss_at_own_size(task, model, rules, batch, count)
    return row


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def converted(
    model: torch.nn.Module, frame: Tensor, rules: Path | float
) -> tuple[deltaconvert.DeltaModel, list[Launch]]:
    """The network after its first frame, and that frame's launches, named by their layers."""
    delta = deltaconvert.convert(model, frame, threshold=rules)
    with noted() as found:
        delta(frame)
    return delta, [*found]


def played(delta: deltaconvert.DeltaModel, frames: Sequence[Tensor], first: int) -> tuple[list[float], float]:
    """(milliseconds of each frame after the `first`, their share of a dense frame's multiply-accumulates)"""
    for frame in frames[:first]:
        delta(frame)
    before = delta.stats()
    (buffer,) = delta.frame_buffers()
    times, _, _ = timed(delta.lend, list(frames[first:]), buffer.copy_)
    after = delta.stats()
    done, known = (sum(layer.total_macs_done for layer in stats.layers) for stats in (after, before))
    return times, (done - known) / (after.macs_dense * len(times))


def settling(rules: Thresholds | Path | float) -> int:
    """Frames before those that are timed."""
    gate = Thresholds.of(rules).gate or Gate()
    return FIRST + (AVERAGED * gate.recent if gate.recent > 1 else 0)


def loss(task: Task, delta: Run, model: Run, frames: list[Tensor]) -> float:
    """The mean loss of the frames after the first."""
    return statistics.mean([loss_of_frame(task, delta, model, frame) for frame in frames][1:])


def loss_at_own_size(
    task: Task, model: torch.nn.Module, rules: Path | float, batch: int, count: int
) -> float:
    """The loss on frames that are not enlarged, of the size at which the thresholds were found."""
    frames = batches(task, task.test, batch, count, size=None)
    return loss(task, deltaconvert.convert(model, frames[0], threshold=rules), model, frames)


def loss_of_frame(task: Task, delta: Run, model: Run, frame: Tensor) -> float:
    """The loss of the task's features, image by image if they are maps: those of an upscaler take much memory."""
    ours = task.features(delta(frame))
    if isinstance(ours, Tensor) and ours.dim() == 4:
        theirs = [task.features(model(image)) for image in frame.split(1)]
        return deltaconvert.metrics.relative_l2([*ours.split(1)], theirs)
    return deltaconvert.metrics.relative_l2([ours], [task.features(model(frame))])


def steps_of(delta: deltaconvert.DeltaModel, frames: list[Tensor], launches: list[Launch]) -> dict[str, Any]:
    """The microseconds that each kernel, and each layer, adds to a frame under torch's profiler."""
    events = timeline(delta, frames)
    names = [event.name.split("(")[0] for event in events]
    kernels = by_layer(events, [Launch(name, name) for name in names])
    return {
        "kernels_us": {name: {"launches": len(us), "us": sum(us)} for name, us in kernels.items()},
        "layers_us": {layer: sum(us) for layer, us in by_layer(events, launches).items()},
    }


def size_of(task: Task) -> tuple[int, int]:
    return SIZES.get(task.name, SIZE)


def batches(
    task: Task,
    numbers: Sequence[int],
    batch: int,
    count: int,
    size: tuple[int, int] | None,
    kind: torch.dtype = torch.float16,
) -> list[Tensor]:
    """`count` inputs (batch, C, H, W) of `size` or the task's own; each image of a batch begins elsewhere."""
    first = min(numbers)
    apart = min(APART, (len(numbers) - count) // max(batch - 1, 1))
    wanted = {first + place * apart + step for place in range(batch) for step in range(count)}
    every = sorted(wanted)
    pictures = dict(zip(every, task.frames(every), strict=True))
    found = []
    for step in range(count):
        images = [pictures[first + place * apart + step] for place in range(batch)]
        x = torch.stack(images).permute(0, 3, 1, 2).to(DEVICE).float()
        found.append((task.prepare(x, size) if size else task.prepare(x)).to(kind).contiguous())
    return found


if __name__ == "__main__":
    main()
