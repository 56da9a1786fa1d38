"""GPU speed, dense against delta in one run: a textured box moves over a still textured background, and real clips.

    python benchmarks/gpu.py --out FILE [--units resnet50:half:1,...] [--seconds 420]
    python benchmarks/gpu.py readme FILE      the table of the README
    python benchmarks/gpu.py table FILE       all of it

A unit is a network, a type of numbers and a batch; clips are played at batch 1. Units are measured one by one, the
most telling first, and added to FILE, which is read first: what it holds on this GPU is not measured again, so that a
run may be cut into slices. Dense engines are those of gpu_dense.py; each case times the best of them again beside the
converted network. Neither pays for copying frames to where it reads them.

`floor` is the least a frame can take on this GPU: its bytes (candidates read and written once, weights of the layers
that have any) over the rate of a large copy, or its operations over that of a large product. `efficiency` is dense time
times the share of multiply-accumulates at changed pixels over delta time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks import gpu_dense  # noqa: E402
from benchmarks.gpu_dense import MODES, TYPES, ceilings, channels, engines, median_ms, network, timed  # noqa: E402
from deltaconvert.report import table  # noqa: E402

VIDEOS = ROOT.parent / "shared" / "data" / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4")
GREY_LEVELS = 10  # the input threshold of clips: what a codec adds stays below it
SIZES = {"hrnet_w32": (384, 288)}
SIZE = (1080, 1920)  # of all others


NAMES = {
    "resnet50": "ResNet-50",
    "mobilenetv2": "MobileNetV2",
    "dncnn": "DnCNN",
    "unet": "U-Net",
    "hrnet_w32": "HRNet-W32",
    "deeplabv3_resnet50": "DeepLabV3 (ResNet-50)",
    "efficientnet_b0": "EfficientNet-B0",
}
SHOWN = (  # in the README
    "resnet50:tf32:8",
    "resnet50:half:8",
    "resnet50:tf32:1",
    "resnet50:half:1",
    "mobilenetv2:half:8",
    "dncnn:half:1",
    "unet:half:8",
    "hrnet_w32:half:32",
    "deeplabv3_resnet50:half:1",
    "efficientnet_b0:half:8",
)


class Unit(NamedTuple):
    network: str
    type: str
    batch: int

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @property
    def size(self) -> tuple[int, int]:
        return SIZES.get(self.network, SIZE)


def of_worth() -> list[Unit]:
    """All units, the most telling first: types and batches in turn, the networks side by side."""
    networks = ("resnet50", "mobilenetv2", "efficientnet_b0", "unet", "deeplabv3_resnet50", "dncnn")
    large = [Unit(n, kind, batch) for batch in (1, 8) for kind in ("half", "tf32") for n in networks]
    poses = [Unit("hrnet_w32", kind, batch) for kind in ("half", "tf32") for batch in (32, 1, 64)]
    first = [Unit("resnet50", kind, batch) for kind in ("half", "tf32") for batch in (1, 8)]
    return list(dict.fromkeys([*first, poses[0], *large, *poses, Unit("resnet50", "float", 1)]))


def main() -> None:
    options = arguments()
    if options.action in ("table", "readme"):
        print((tables if options.action == "table" else readme)(json.loads(options.file.read_text())))
        return
    if options.action == "warm":
        unit = _unit(options.units)
        gpu_dense.warm(*_model_and_frame(unit), options.modes[0], options.kept / str(unit))
        return
    facts = read(options.out)
    units = [_unit(text) for text in options.units.split(",")] if options.units else of_worth()
    units = [unit for unit in units if not any(_is_of(row, unit) for row in facts["results"])]
    began = time.perf_counter()
    if options.ahead:
        compile_ahead(units[: options.ahead], options)
    for unit in units:
        if time.perf_counter() - began > options.seconds:
            print(f"time is over before {unit}")
            break
        facts["results"] += measure(unit, options)
        if options.out:
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
        gc.collect()
        torch.cuda.empty_cache()
    print(tables(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "action", nargs="?", choices=("measure", "table", "readme", "warm"), default="measure"
    )
    parser.add_argument("file", nargs="?", type=Path, help="of an earlier run, for table")
    parser.add_argument("--units", help="network:type:batch, ...; all of them without it")
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame in the box")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1e9, help="no unit starts after so many")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES), help="of torch.compile")
    parser.add_argument("--kept", type=Path, help="folder of what torch compiled, for later runs")
    parser.add_argument(
        "--ahead", type=int, default=0, help="units compiled first, side by side, into --kept"
    )
    parser.add_argument("--ahead-seconds", type=float, default=80)
    parser.add_argument("--side-by-side", type=int, default=6)
    parser.add_argument("--no-clips", dest="clips", action="store_false")
    parser.add_argument("--profile", type=float, help="print the kernels of frames of this density")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.action in ("table", "readme") and options.file is None:
        parser.error("a table needs the JSON file of an earlier run")
    if options.kept is None and (options.ahead or options.action == "warm"):
        parser.error("what is compiled ahead needs a folder: --kept")
    return options


def read(out: Path | None) -> dict[str, Any]:
    """The facts of an earlier slice on the same GPU and versions, or fresh ones."""
    facts = environment()
    if out is not None and out.exists():
        known = json.loads(out.read_text())
        same = all(known[key] == facts[key] for key in facts if key not in ("date", "command"))
        if not same:
            raise SystemExit(f"{out} was measured elsewhere: give another --out")
        return {**known, "command": facts["command"]}
    return {**facts, "results": []}


def compile_ahead(units: Sequence[Unit], options: argparse.Namespace) -> None:
    """Compile the dense networks side by side, in processes of their own, into options.kept."""
    todo = [(unit, mode) for unit in units for mode in options.modes]
    todo = [(unit, mode) for unit, mode in todo if not (options.kept / str(unit) / f"{mode}.bin").exists()]
    until = time.monotonic() + options.ahead_seconds

    def compile_one(unit: Unit, mode: str) -> None:
        script = [sys.executable, __file__, "warm", "--kept", str(options.kept)]
        left = max(0.0, until - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):  # its unit compiles by itself
            subprocess.run(
                [*script, "--modes", mode, "--units", str(unit)], timeout=left, capture_output=True
            )

    with ThreadPoolExecutor(options.side_by_side) as pool:
        list(pool.map(lambda pair: compile_one(*pair), todo))


@torch.no_grad()
def measure(unit: Unit, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a unit, one for each case."""
    began = time.perf_counter()
    model, base = _model_and_frame(unit)
    kept = None if options.kept is None else options.kept / str(unit)
    runs = engines(model, base, tuple(options.modes), kept)
    compiled_after = time.perf_counter() - began
    nhwc = base.contiguous(memory_format=torch.channels_last)
    dense = {name: median_ms(run, nhwc, options.frames // 2) for name, run in runs.items()}
    best = min(dense, key=lambda name: dense[name])
    runs = {"eager": runs["eager"], best: runs[best]}
    gc.collect()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    exact = deltaconvert.convert(model, base)
    exact(base)
    torch.cuda.synchronize()
    ready, limits = time.perf_counter() - start, ceilings(unit.type)
    shared = {
        **unit._asdict(),
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
        delta.reset()
        for frame in frames[:3]:
            delta(frame)
        (buffer,) = delta.frame_buffers()
        times, host, output = timed(delta, frames[3:], buffer.copy_)
        again = median_ms(runs[best], nhwc, 10)
        stats, (bytes_moved, operations) = delta.stats(), work_of(delta)
        floor = max(bytes_moved / limits["bytes_per_second"], operations / limits["flops_per_second"]) * 1e3
        row = {
            **shared,
            "case": case,
            "density": density,
            "threshold": threshold,
            "dense_ms": again,
            "delta_ms": statistics.median(times),
            "p99_ms": sorted(times)[int(len(times) * 0.99)],
            "host_ms": host,
            "work": stats.work,
            "floor_ms": floor,
            "state_bytes": stats.state_bytes,
            "peak_bytes": torch.cuda.max_memory_allocated() - held,
            "layers": [round(layer.density, 4) for layer in stats.layers] if density in (None, 0.05) else [],
        }
        row["ratio"] = row["dense_ms"] / row["delta_ms"]
        row["efficiency"] = row["ratio"] * row["work"]
        row["roofline"] = floor / row["delta_ms"]
        if not threshold:
            row["error"] = _error(output, runs["eager"](frames[-1]))
        rows.append(row)
        told = f"{row['delta_ms']:.3f} ms, dense {again:.3f}, {row['ratio']:.2f}x, e {row['efficiency']:.2f}"
        print(f"{unit} {case}: {told}", flush=True)
        if options.profile is not None and density == options.profile / 100:
            profile(delta, frames)
    print(
        f"{unit} took {time.perf_counter() - began:.0f} s: dense {compiled_after:.0f} s, first frame {ready:.1f} s"
    )
    return rows


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


def environment() -> dict[str, str]:
    import cupy

    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "deltaconvert": deltaconvert.__version__,
    }


def code() -> str:
    """Of the kernels and of what launches them: rows of other code are not of one run."""
    files = sorted([*(ROOT / "kernels").glob("*.cu*"), *(ROOT / "deltaconvert/backends/cuda").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _model_and_frame(unit: Unit) -> tuple[torch.nn.Module, Tensor]:
    model = network(unit.network, unit.type)
    shape = (unit.batch, channels(model), *unit.size)
    return model, torch.rand(shape, device="cuda", dtype=TYPES[unit.type])


def _unit(text: str) -> Unit:
    name, kind, batch = text.split(":")
    return Unit(name, kind, int(batch))


def _is_of(row: dict[str, Any], unit: Unit) -> bool:
    return (row["network"], row["type"], row["batch"]) == unit


def _error(output: Any, expected: Any) -> float:
    """The largest difference in the first output, of its largest value."""
    a, b = (torch.utils._pytree.tree_leaves(value)[0] for value in (output, expected))
    return float((a - b).abs().max() / b.abs().max())


# ---- what a JSON file says, as tables


def tables(facts: dict[str, Any]) -> str:
    """Markdown: how many times faster than the best dense engine of the run, by unit and case; then the details."""
    units = list(dict.fromkeys(Unit(row["network"], row["type"], row["batch"]) for row in facts["results"]))
    names = list(dict.fromkeys(row["case"] for row in facts["results"] if row["density"] is not None))
    head = ("network", "batch", "type", "best dense", *names)
    body, details = [], []
    for unit in units:
        rows = [row for row in facts["results"] if _is_of(row, unit)]
        boxes = {row["case"]: times_faster(row["ratio"]) for row in rows if row["density"] is not None}
        dense = statistics.median(row["dense_ms"] for row in rows)
        title = f"{unit.network} {unit.size[1]}x{unit.size[0]}"
        own = (title, str(unit.batch), unit.type)
        body.append((*own, f"{rows[0]['best']}, {dense:.3g} ms", *(boxes.get(name, "") for name in names)))
        for row in rows:
            case = row["case"] + (f", threshold {row['threshold']:.2g}" if row["threshold"] else "")
            of_last = ("work", "efficiency", "roofline")  # the last frame's: a clip's frames are not alike
            numbers = (
                f"{row[key]:.3g}" if row["density"] is not None or key not in of_last else ""
                for key in ("delta_ms", "p99_ms", "host_ms", "ratio", *of_last)
            )
            memory = (f"{row[key] / 1e9:.2f}" for key in ("state_bytes", "peak_bytes"))
            details.append((*own, case, f"{row['dense_ms']:.3g}", *numbers, *memory))
    columns = "network,batch,type,case,dense ms,delta ms,p99 ms,host ms,ratio,work,e,of the roofline,state GB,peak GB"
    where = (
        f"{facts['gpu']}, torch {facts['torch']}, CUDA {facts['cuda']}, {facts['date']}, `{facts['command']}`"
    )
    versions = {row.get("code") for row in facts["results"]}
    if len(versions) > 1:
        where += f"; {len(versions)} versions of the kernels, each row says which"
    return "\n\n".join([markdown(head, body), where, markdown(columns.split(","), details)])


def readme(facts: dict[str, Any]) -> str:
    """The table of the README: its units, as many of them as were measured."""
    body = []
    for unit in map(_unit, SHOWN):
        rows = [row for row in facts["results"] if _is_of(row, unit) and row["density"] is not None]
        if rows:
            numbers = f"{unit.type.replace('tf32', 'TF32')}, {unit.batch}"
            dense = f"{statistics.median(row['dense_ms'] for row in rows):#.3g} ms"
            body.append((NAMES[unit.network], numbers, dense, *(times_faster(row["ratio"]) for row in rows)))
    cases = ("still", "1%", "5%", "10%", "25%", "50%", "100%")
    return markdown(("network", "numbers, batch", "best dense", *cases), body)


def times_faster(ratio: float) -> str:
    """Two digits: 0.90x, 7.3x, 150x."""
    text = f"{ratio:#.2g}".rstrip(".")
    return f"{float(text):.0f}x" if "e" in text else f"{text}x"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
