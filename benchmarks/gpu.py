"""GPU speed, dense against delta in one run: a textured box moves over a still textured background, and real clips.

    python benchmarks/gpu.py --out FILE [--units resnet50:half:1,...] [--kept FOLDER --ahead 6] [--seconds 420]
    python benchmarks/gpu.py --queue UNITS --out FILE    takes units from a file that several processes share
    python benchmarks/gpu.py merge FILE --out RECORD     puts the complete units of FILE into the record
    python benchmarks/gpu.py readme RECORD               the table of the README
    python benchmarks/gpu.py table RECORD                all of it

A unit is a network, a type of numbers and a batch; clips are played at batch 1, and with the units of --clips-of. Units
are measured one by one, the most telling first, and each is written to FILE when it is done. What FILE already holds is
not measured again, so a run may be cut into slices, and a unit that fails costs no other. Dense engines are those of
gpu_dense.py; each case times the best of them again beside the converted network. Neither side pays for copying frames
to where it reads them or outputs out of the memory of its graph (`lend`). cuDNN's search for its fastest convolution is
off while a network is converted, since the converted network does not use them.

`floor` is the least that a frame can take on this GPU: its bytes (candidates read and written once, weights of the
layers that have any) at the rate of a large copy, or its operations at the rate of a large product. `efficiency` is
dense time times the share of multiply-accumulates at changed pixels over delta time."""

from __future__ import annotations

import argparse
import fcntl
import gc
import hashlib
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks import gpu_dense
from benchmarks.gpu_ahead import compile_ahead, kept_file, kept_files
from benchmarks.gpu_dense import (
    LEAST,
    MODES,
    TYPES,
    Run,
    alone,
    card,
    ceilings,
    channels,
    engines,
    median_ms,
    network,
    raced,
    repeats,
    searching,
    timed,
)
from benchmarks.gpu_floor import floor_ms
from benchmarks.gpu_frames import CLIPS, VIDEOS, clip, there_and_back, video
from benchmarks.gpu_record import (
    Unit,
    by_unit,
    here_and_now,
    merge,
    most_telling_first,
    read,
    readme,
    tables,
)

# If dense takes so much more or less than before, another process disturbed it: try again.
DISTURBED, TRIES = 0.05, 3
FRAME_BYTES = 2e9  # what frames may take; large networks leave no more
GREY_LEVELS = 10  # the input threshold of clips; a codec's noise stays below it
# They do not fit into 80 GB beside their dense network, which is timed before them and after them.
APART = (Unit("unet", "tf32", 8),)


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
    if options.queue:
        units = taken(options.queue)
    else:
        asked = (
            [Unit.of(text) for text in options.units.split(",")] if options.units else most_telling_first()
        )
        missing = [unit for unit in asked if unit not in by_unit(facts)]
        if options.ahead:
            missing = compile_ahead(
                missing, options.modes, options.kept, options.ahead, options.ahead_seconds
            )
        units = iter(missing)
    while time.perf_counter() - began < options.seconds:
        unit = next(units, None)
        if unit is None:
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
    else:
        waiting = options.queue.read_text().split() if options.queue else map(str, units)
        print(f"time is over before {', '.join(waiting)}")
    print(tables(facts))


def taken(queue: Path) -> Iterator[Unit]:
    """Takes units from a file that has one in each line: the first line, which it removes."""
    while True:
        with queue.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            first, *others = file.read().splitlines() or [""]
            file.seek(0)
            file.truncate()
            file.write("".join(f"{other}\n" for other in others))
        if not first:
            return
        yield Unit.of(first)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = ("measure", "merge", "table", "readme", "warm")
    parser.add_argument("action", nargs="?", choices=actions, default="measure")
    parser.add_argument("file", nargs="?", type=Path, help="of an earlier run")
    parser.add_argument("--units", help="network:type:batch, ...; all of them without it")
    parser.add_argument(
        "--queue", type=Path, help="file of units, one a line, from which others take as well"
    )
    parser.add_argument(
        "--beside", type=int, default=0, help="other GPUs of this host that are at work, for the record"
    )
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame in the box")
    parser.add_argument(
        "--frames", type=int, default=24, help="that differ; short ones are played there and back"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="no unit starts after so many")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES), help="of torch.compile")
    parser.add_argument("--if-kept", nargs="*", choices=MODES, default=[], help="further modes, where kept")
    parser.add_argument("--kept", type=Path, help="folder of what torch compiled, for later runs")
    parser.add_argument("--ahead", type=int, default=0, help="networks compiled at once, first, into --kept")
    parser.add_argument("--ahead-seconds", type=float, default=120)
    parser.add_argument("--no-clips", dest="clips", action="store_false")
    parser.add_argument("--clips-of", default="", help="units of larger batches that clips are played with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.action in ("table", "readme", "merge") and options.file is None:
        parser.error("this needs the JSON file of an earlier run")
    if options.action == "merge" and options.out is None:
        parser.error("merge needs the record, --out")
    if options.queue and (options.units or options.ahead):
        parser.error("units are those of --queue, or of --units")
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
    kept = {mode: kept_file(options.kept, unit, mode) for mode in modes} if options.kept else None
    dense = Dense(model, base, modes, kept, beside=unit not in APART)
    dense_after = time.perf_counter() - began
    told = ", ".join(f"{name} {ms:.3g} ms" for name, ms in dense.ms.items())
    print(f"{unit} dense: {told}; after {dense_after:.0f} s", flush=True)
    command = ["python benchmarks/gpu.py", f"--units {unit}", f"--frames {options.frames}", "--modes", *modes]
    shared = {
        **unit._asdict(),
        **here_and_now(),
        "command": " ".join(command),
        "gpu": torch.cuda.get_device_name(),
        "card": card(),
        "beside": options.beside,
        "shape": list(base.shape),
        "best": dense.best,
        "dense_all_ms": dense.ms,
        "code": code(),
        **ceilings(unit.type),
    }
    rows = []
    for threshold in (0.0, GREY_LEVELS / 255):
        rows += at_threshold(threshold, unit, model, base, dense, shared, options)
    if unit in APART:  # nothing of the converted network is left
        after = Dense(model, base, [mode for mode in modes if mode == dense.best], kept)
        for row in rows:
            row["dense_apart_ms"] = [dense.ms[dense.best], after.ms[dense.best]]
            row["dense_ms"] = min(row["dense_apart_ms"])
            compare(row)
    first, took = rows[0]["first_frame_seconds"], time.perf_counter() - began
    print(f"{unit} took {took:.0f} s: dense {dense_after:.0f} s, first frame {first:.1f} s")
    return rows


def at_threshold(
    threshold: float,
    unit: Unit,
    model: nn.Module,
    base: Tensor,
    dense: Dense,
    shared: dict[str, Any],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The rows at one threshold. shared: what the unit's rows have in common."""
    rows: list[dict[str, Any]] = []
    converted = None
    for case, density, frames in cases(unit, base, threshold, options):
        converted = converted or Converted(model, base, threshold)
        for _ in range(TRIES):
            output, last, found = played(converted, frames, shared)
            found["dense_ms"] = dense.now()
            if abs(found["dense_ms"] / dense.ms[dense.best] - 1) < DISTURBED:
                break
        compare(found)
        found["error"] = _error(output, dense.eager, last)
        if density not in (None, 0.05):
            found["layers"] = []  # keeps the record short
        rows.append({**shared, "case": case, "density": density, "threshold": threshold, **found})
        told = "{delta_ms:.3f} ms, dense {dense_ms:.3f}, {ratio:.2f}x, e {efficiency:.2f}".format(**found)
        print(f"{unit} {case}: {told}", flush=True)
    return rows


class Dense:
    """The dense network on one frame: the milliseconds of each of its engines, and the best engine.

    beside: whether that engine stays, to be timed again beside the converted network. Otherwise it is dropped to make
    room for that network.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: Tensor,
        modes: Sequence[str],
        kept: dict[str, Path] | None,
        beside: bool = True,
    ):
        self._frame = base.contiguous(memory_format=torch.channels_last)
        self.ms, runs = raced(engines(model, base, modes, kept), self._frame)
        self.best = min(self.ms, key=lambda name: self.ms[name])
        self.eager = runs["eager"]
        self._beside = runs[self.best] if beside else None
        del runs
        gc.collect()
        torch.cuda.empty_cache()

    def now(self) -> float:
        """Milliseconds of the best engine, timed now or, if it was dropped, earlier."""
        return self.ms[self.best] if self._beside is None else median_ms(self._beside, self._frame)


def compare(row: dict[str, Any]) -> None:
    """Add to a row what follows from its times and dense's."""
    row["ratio"] = row["dense_ms"] / row["delta_ms"]
    row["efficiency"] = row["ratio"] * row["work"]


class Converted:
    """A network that has played its first frame: the seconds it took, the bytes that stay allocated, and the peak."""

    def __init__(self, model: torch.nn.Module, base: Tensor, threshold: float):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        with alone(), searching(False):  # a first frame measures which tiles to use
            start = time.perf_counter()
            kept = {"input": threshold} if threshold else 0.0
            self.delta = deltaconvert.convert(model, base, threshold=kept)
            self.delta(base)
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - start
        self.bytes = torch.cuda.memory_allocated() - held
        self.peak = torch.cuda.max_memory_allocated() - held


def played(
    converted: Converted, frames: Sequence[Tensor], limits: dict[str, Any]
) -> tuple[Any, Tensor, dict[str, Any]]:
    """(the last output, its frame, times and work), playing from a full frame on; the first three settle."""
    delta = converted.delta
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    delta.reset()
    with alone():
        for frame in frames[:3]:
            delta(frame)
        torch.cuda.synchronize()
    (buffer,) = delta.frame_buffers()
    walk = there_and_back(frames[2:])
    once = min(timed(delta.lend, [*itertools.islice(walk, 2)], buffer.copy_)[0])
    queue = [*itertools.islice(walk, repeats(once))]
    times, host, output = timed(delta.lend, queue, buffer.copy_)
    stats, floor = delta.stats(), floor_ms(delta, limits)
    return (
        output,
        queue[-1],
        {
            "delta_ms": statistics.median(times),
            "p99_ms": sorted(times)[int(len(times) * 0.99)],
            "frames": len(times),
            "host_ms": host,
            "work": stats.work,
            "floor_ms": floor,
            "roofline": floor / statistics.median(times),
            "state_bytes": stats.state_bytes,
            "peak_bytes": max(converted.peak, converted.bytes + torch.cuda.max_memory_allocated() - held),
            "first_frame_seconds": converted.seconds,
            "layers": [round(layer.density, 4) for layer in stats.layers],
        },
    )


def cases(
    unit: Unit, base: Tensor, threshold: float, options: argparse.Namespace
) -> Iterator[tuple[str, float | None, list[Tensor]]]:
    """(name, density of the box or None, frames): boxes where every change counts, clips with and without noise."""
    count = min(options.frames, max(LEAST, int(FRAME_BYTES / base.nbytes)))
    densities = [float(text) for text in options.densities.split(",") if text]
    for percent in () if threshold else densities:
        frames = [*video(base, percent / 100, count)]
        yield f"{percent:g}%" if percent else "still", percent / 100, frames
    wanted = unit.batch == 1 or str(unit) in options.clips_of.split(",")
    for name in CLIPS if options.clips and wanted else ():
        if frames := clip(VIDEOS / name, base, count):
            yield name.split(".")[0], None, frames


def code() -> str:
    """A hash of the kernels and of what launches them: only rows of the same code belong to one run."""
    files = sorted([*(ROOT / "kernels").glob("*.cu*"), *(ROOT / "deltaconvert/backends/cuda").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def model_and_frame(unit: Unit) -> tuple[torch.nn.Module, Tensor]:
    model = network(unit.network, unit.type)
    shape = (unit.batch, channels(model), *unit.size)
    return model, torch.rand(shape, device="cuda", dtype=TYPES[unit.type])


def _error(output: Any, dense: Run, frame: Tensor) -> float:
    """The largest difference in the first output as a share of its largest value, computed in parts to save memory."""
    parts = frame.split(-(-len(frame) // 8))
    with searching(False):
        expected = torch.cat([torch.utils._pytree.tree_leaves(dense(part))[0] for part in parts])
    found = torch.utils._pytree.tree_leaves(output)[0]
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
