"""GPU speed, dense against delta in one run: a textured box moves over a still textured background, and real clips.

    python benchmarks/gpu.py --out FILE [--units resnet50:half:1,...] [--kept FOLDER --ahead 6] [--seconds 420]
    python benchmarks/gpu.py merge FILE --out RECORD     units of FILE that are whole replace those of the record
    python benchmarks/gpu.py readme RECORD               the table of the README
    python benchmarks/gpu.py table RECORD                all of it

A unit is a network, a type of numbers and a batch; clips are played at batch 1. Units are measured one by one, the
most telling first, and written to FILE as each is done. FILE is read first, and what it holds is not measured again: a
run may be cut into slices, and one unit that fails costs no other. Dense engines are those of gpu_dense.py; each case
times the best of them again beside the converted network. Neither pays for copying frames to where it reads them.

`floor` is the least a frame can take on this GPU: its bytes (candidates read and written once, weights of the layers
that have any) over the rate of a large copy, or its operations over that of a large product. `efficiency` is dense time
times the share of multiply-accumulates at changed pixels over delta time.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks import gpu_dense  # noqa: E402
from benchmarks.gpu_ahead import compile_ahead, kept_file, kept_files  # noqa: E402
from benchmarks.gpu_dense import (  # noqa: E402
    MODES,
    TYPES,
    alone,
    ceilings,
    channels,
    engines,
    median_ms,
    network,
    timed,
)
from benchmarks.gpu_record import (  # noqa: E402
    Unit,
    by_unit,
    here_and_now,
    merge,
    of_worth,
    read,
    readme,
    tables,
)
from deltaconvert.report import table  # noqa: E402

VIDEOS = ROOT.parent / "shared" / "data" / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4")
DISTURBED, TRIES = 0.05, 3  # dense takes so much more or less than before: somebody else was at work, again
GREY_LEVELS = 10  # the input threshold of clips: what a codec adds stays below it


def main() -> None:
    options = arguments()
    if options.action in ("table", "readme"):
        print((tables if options.action == "table" else readme)(json.loads(options.file.read_text())))
    elif options.action == "merge":
        record, told = merge(*(json.loads(file.read_text()) for file in (options.out, options.file)))
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        print("\n".join(told))
    elif options.action == "warm":
        unit, mode = Unit.of(options.units), options.modes[0]
        gpu_dense.warm(*model_and_frame(unit), mode, kept_file(options.kept, unit, mode))
    else:
        measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    facts = read(options.out)
    units = [Unit.of(text) for text in options.units.split(",")] if options.units else of_worth()
    units = [unit for unit in units if unit not in by_unit(facts)]
    if options.ahead:
        units = compile_ahead(units, options.modes, options.kept, options.ahead, options.ahead_seconds)
    for place, unit in enumerate(units):
        if time.perf_counter() - began > options.seconds:
            print(f"time is over before {', '.join(map(str, units[place:]))}")
            break
        try:
            facts["results"] += measure(unit, options)
        except Exception:
            traceback.print_exc()
            torch.cuda.synchronize()  # raises where the device is lost: nothing more can be measured then
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
        gc.collect()
        torch.cuda.empty_cache()
    print(tables(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = ("measure", "merge", "table", "readme", "warm")
    parser.add_argument("action", nargs="?", choices=actions, default="measure")
    parser.add_argument("file", nargs="?", type=Path, help="of an earlier run")
    parser.add_argument("--units", help="network:type:batch, ...; all of them without it")
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame in the box")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1e9, help="no unit starts after so many")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES), help="of torch.compile")
    parser.add_argument("--if-kept", nargs="*", choices=MODES, default=[], help="further modes, where kept")
    parser.add_argument("--kept", type=Path, help="folder of what torch compiled, for later runs")
    parser.add_argument("--ahead", type=int, default=0, help="networks compiled at once, first, into --kept")
    parser.add_argument("--ahead-seconds", type=float, default=120)
    parser.add_argument("--no-clips", dest="clips", action="store_false")
    parser.add_argument("--profile", type=float, help="print the kernels of frames of this density")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.action in ("table", "readme", "merge") and options.file is None:
        parser.error("this needs the JSON file of an earlier run")
    if options.action == "merge" and options.out is None:
        parser.error("merge needs the record, --out")
    if options.kept is None and (options.ahead or options.if_kept or options.action == "warm"):
        parser.error("what is compiled ahead needs a folder: --kept")
    return options


@torch.no_grad()
def measure(unit: Unit, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a unit, one for each case."""
    began = time.perf_counter()
    model, base = model_and_frame(unit)
    further = kept_files(options.kept, unit, options.if_kept)
    modes = list(dict.fromkeys([*options.modes, *further]))
    runs = engines(model, base, modes, kept_files(options.kept, unit, modes))
    compiled_after = time.perf_counter() - began
    nhwc = base.contiguous(memory_format=torch.channels_last)
    dense = {name: median_ms(run, nhwc, options.frames // 2) for name, run in runs.items()}
    best = min(dense, key=lambda name: dense[name])
    runs = {"eager": runs["eager"], best: runs[best]}
    gc.collect()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with alone():
        start = time.perf_counter()
        exact = deltaconvert.convert(model, base)
        exact(base)
        torch.cuda.synchronize()
        ready = time.perf_counter() - start
    limits = ceilings(unit.type)
    command = ["python benchmarks/gpu.py", f"--units {unit}", f"--frames {options.frames}", "--modes", *modes]
    shared = {
        **unit._asdict(),
        **here_and_now(),
        "command": " ".join(command),
        "gpu": torch.cuda.get_device_name(),
        "shape": list(base.shape),
        "best": best,
        "dense_all_ms": dense,
        "first_frame_seconds": ready,
        "code": code(),
        **limits,
    }
    rows = []
    for case, density, threshold, frames in cases(base, options):
        delta = deltaconvert.convert(model, base, threshold={"input": threshold}) if threshold else exact
        for _ in range(TRIES):
            output, found = played(delta, frames, limits)
            found["dense_ms"] = median_ms(runs[best], nhwc, 10)
            if abs(found["dense_ms"] / dense[best] - 1) < DISTURBED:
                break
        found["ratio"] = found["dense_ms"] / found["delta_ms"]
        found["efficiency"] = found["ratio"] * found["work"]
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - held
        if density not in (None, 0.05):
            found["layers"] = []
        if not threshold:
            found["error"] = _error(output, runs["eager"](frames[-1]))
        rows.append({**shared, "case": case, "density": density, "threshold": threshold, **found})
        told = "{delta_ms:.3f} ms, dense {dense_ms:.3f}, {ratio:.2f}x, e {efficiency:.2f}".format(**found)
        print(f"{unit} {case}: {told}", flush=True)
        if options.profile is not None and density == options.profile / 100:
            profile(delta, frames)
    took = time.perf_counter() - began
    print(f"{unit} took {took:.0f} s: dense {compiled_after:.0f} s, first frame {ready:.1f} s")
    return rows


def played(
    delta: deltaconvert.DeltaModel, frames: list[Tensor], limits: dict[str, float]
) -> tuple[Any, dict[str, Any]]:
    """(the last output, what the frames took and did), from a full frame on; the first three settle."""
    delta.reset()
    with alone():  # a first frame measures its tiles
        for frame in frames[:3]:
            delta(frame)
        torch.cuda.synchronize()
    (buffer,) = delta.frame_buffers()
    times, host, output = timed(delta, frames[3:], buffer.copy_)
    stats, (bytes_moved, operations) = delta.stats(), work_of(delta)
    floor = max(bytes_moved / limits["bytes_per_second"], operations / limits["flops_per_second"]) * 1e3
    return output, {
        "delta_ms": statistics.median(times),
        "p99_ms": sorted(times)[int(len(times) * 0.99)],
        "host_ms": host,
        "work": stats.work,
        "floor_ms": floor,
        "roofline": floor / statistics.median(times),
        "state_bytes": stats.state_bytes,
        "layers": [round(layer.density, 4) for layer in stats.layers],
    }


def cases(
    base: Tensor, options: argparse.Namespace
) -> Iterator[tuple[str, float | None, float, list[Tensor]]]:
    """(name, density of the box or None, input threshold, frames)."""
    for percent in map(float, options.densities.split(",")):
        yield (
            f"{percent:g}%" if percent else "still",
            percent / 100,
            0.0,
            list(video(base, percent / 100, options.frames)),
        )
    for name in CLIPS if options.clips and len(base) <= 2 else ():
        frames = clip(VIDEOS / name, base, options.frames)
        for threshold in (0.0, GREY_LEVELS / 255) if frames else ():
            yield name.split(".")[0], None, threshold, frames


def video(base: Tensor, density: float, frames: int) -> Iterator[Tensor]:
    """A box of `density` of the frame with new texture in every frame; it moves by two pixels a frame."""
    height, width = base.shape[2:]
    h, w = round(height * density**0.5), round(width * density**0.5)
    for index in range(frames):
        frame = base.clone()
        y, x = (height - h) // 3, min((width - w) // 3 + 2 * index, width - w)
        frame[:, :, y : y + h, x : x + w] = torch.rand_like(frame[:, :, y : y + h, x : x + w])
        yield frame


def clip(path: Path, base: Tensor, count: int) -> list[Tensor]:
    """Frames of a clip in 0..1, as large as `base`; the images of a batch are the same."""
    batch, depth, *size = base.shape
    images = _decoded(path, count)
    if not images:
        print(f"no {path.name}: {path.parent} or OpenCV is missing")
    frames = []
    for image in images:
        values = image.to(base.device).permute(2, 0, 1)[None, :depth].to(base.dtype) / 255
        frames.append(torch.nn.functional.interpolate(values, size, mode="nearest").repeat(batch, 1, 1, 1))
    return frames


def _decoded(path: Path, count: int) -> list[Tensor]:
    """uint8 (H, W, 3)."""
    try:
        import cv2
    except ImportError:
        return []
    source, images = cv2.VideoCapture(str(path)), []
    while len(images) < count:
        there, image = source.read()
        if not there:
            break
        images.append(torch.from_numpy(image))
    return images


def work_of(delta: deltaconvert.DeltaModel) -> tuple[float, float]:
    """(bytes, operations) of the last frame."""
    moved, operations = zip(*work_by_layer(delta).values(), strict=True)
    return sum(moved), sum(operations)


def work_by_layer(delta: deltaconvert.DeltaModel) -> dict[str, tuple[float, float]]:
    """{path: (bytes, operations)} of the last frame: candidates read and written once, weights where there are any."""
    explained = {row.path: row for row in delta.explain().rows}
    program = delta._program
    size = next(iter(program.edges.values())).values.element_size()
    weights = {
        node.meta.get("path", node.name): sum(
            b.numel() for b in program.plan.graph.get_submodule(str(node.target)).buffers()
        )
        for node in program.plan.graph.graph.nodes
        if node.op == "call_module"
    }
    found = {}
    for layer in delta.stats().layers:
        row = explained[layer.path]
        maps = [row.shape, *(explained[p].shape for p in row.inputs if p in explained)]
        values = sum(torch.Size(shape).numel() for shape in maps if shape)
        moved = size * (values * layer.computed + weights.get(layer.path, 0) * (layer.computed > 0))
        found[layer.path] = (moved, 2.0 * layer.macs_done)
    return found


def profile(delta: deltaconvert.DeltaModel, frames: list[Tensor]) -> None:
    """Microseconds a frame of the slowest kernels, by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        for frame in frames[3:8]:
            delta(frame)
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = {}
    for event in found.events():
        totals.setdefault(event.name, []).append(event.device_time_total / 5)
    body = [
        (name[:70], str(len(spent) // 5), f"{sum(spent):.1f}", f"{max(spent) * 5:.1f}")
        for name, spent in sorted(totals.items(), key=lambda item: -sum(item[1]))[:16]
    ]
    print(table(("kernel", "a frame", "us a frame", "longest us"), body))


def code() -> str:
    """Of the kernels and of what launches them: rows of other code are not of one run."""
    files = sorted([*(ROOT / "kernels").glob("*.cu*"), *(ROOT / "deltaconvert/backends/cuda").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def model_and_frame(unit: Unit) -> tuple[torch.nn.Module, Tensor]:
    model = network(unit.network, unit.type)
    shape = (unit.batch, channels(model), *unit.size)
    return model, torch.rand(shape, device="cuda", dtype=TYPES[unit.type])


def _error(output: Any, expected: Any) -> float:
    """The largest difference in the first output, of its largest value."""
    a, b = (torch.utils._pytree.tree_leaves(value)[0] for value in (output, expected))
    return float((a - b).abs().max() / b.abs().max())


if __name__ == "__main__":
    main()
