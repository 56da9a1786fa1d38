"""Which public networks convert, how, and whether they equal themselves: docs/coverage.md.

    python benchmarks/coverage.py                        # all of benchmarks/zoos.py that are not in the results yet
    python benchmarks/coverage.py 'timm.res*' --again    # those that match, anew
    python benchmarks/coverage.py --workers 16 --stop 240   # what 16 cores finish in 240 s; the rest in the next run
    python benchmarks/coverage.py --docs                 # docs/coverage.md from the results

Each network runs in a process of its own with limits on time and memory. Its weights are random, and its norms have the
statistics of a frame, since a freshly made network multiplies branches by zero and would hide their errors. It is
converted at threshold 0 and plays 6 frames of odd size: the first, a still one, a patch, one pixel, two corners, all.

`difference` is the largest difference from the dense network, as a share of that output's largest value. Up to 1e-5 it
is rounding. Random networks can amplify rounding without bounds, so a network that differs by more is judged in
float64. There it matches up to 1e-9, or up to ten times what the dense network's own output moves by when each weight
moves by its last bit.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks import zoos
from benchmarks.coverage_page import ROUNDING, ROUNDING_DOUBLE, matches, page
from benchmarks.gpu_record import here_and_now

RESULTS, DOCS = ROOT / "benchmarks" / "results" / "coverage.json", ROOT / "docs" / "coverage.md"
LARGE = 300e6  # parameters: networks that get 4 threads, or they would still run when all others have ended
SIZES = ((97, 129), (96, 160), (224, 224), (256, 256))  # the first that the network runs on


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", default=["*"], help="names like timm.resnet*")
    parser.add_argument("--again", action="store_true", help="also what the results hold already")
    parser.add_argument("--seconds", type=int, default=240, help="for one network")
    parser.add_argument(
        "--stop",
        type=float,
        default=float("inf"),
        help="seconds after which what runs is left for the next run",
    )
    parser.add_argument("--workers", type=int, default=1, help="networks at a time, a thread each")
    parser.add_argument("--memory", type=float, default=10, help="GB for one network")
    parser.add_argument(
        "--backends", default="reference", help="the first decides; the others are compared too"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md and nothing else")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    if options.docs:
        DOCS.write_text(page(found))
        return
    now = here_and_now()
    where = f"{_cpu()}, torch {torch.__version__}, {now['date']} at {now['commit']}"
    tasks = {
        name: lambda build=build: examine(build, options.backends.split(","))
        for name, build in zoos.networks(options.patterns)
        if options.again or name not in found["networks"]
    }
    known = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}
    tasks = {name: tasks[name] for name in sorted(tasks, key=lambda name: _cost(name, known))}
    for name, row in apart(tasks, options.workers, options.seconds, options.memory, options.stop):
        found["networks"][name] = {**row, "where": where}
        print(f"{name:50s} {line(row)}", flush=True)
        part = options.out.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, options.out)


def _cost(name: str, known: dict[str, Any]) -> float:
    """A rough estimate of the seconds that a network takes."""
    return known[name]["seconds"] if name in known else zoos.parameters(name) / 2e6


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['error'][:150]}  {row['seconds']:.0f} s"
    return (
        f"{'' if matches(row) else 'MISMATCH '}{row['way']:9s} {row['share']:6.1%} in {row['delta']} of {row['nodes']} "
        f"nodes, difference {row['difference']:.1e} {row.get('difference_double', '')}, {row['seconds']:.0f} s"
    )


def apart(
    tasks: dict[str, Any], workers: int, seconds: float, gigabytes: float, stop: float = float("inf")
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run each task in a process of its own; yields (name, what the task returned) as tasks end.

    A task that fails or takes too much gives {"error": ...}. `tasks` are ordered by their cost: one worker in four
    begins at the costly end, so that no long one is left for last. Tasks that still run `stop` seconds after the start
    are killed, and give nothing.
    """
    waiting, running, began = list(tasks.items()), {}, time.time()
    slots = list(range(workers))
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            if time.time() - began > stop:
                return _end(running)
            while waiting and slots:
                slot = slots.pop()
                name, task = waiting.pop(-1 if slot % 4 == 3 else 0)
                child = os.fork()
                if child == 0:
                    _child(task, Path(folder) / f"{os.getpid()}.json", gigabytes)
                running[child] = name, time.time(), slot
            time.sleep(0.05)
            for child, (name, start, slot) in list(running.items()):
                if os.waitpid(child, os.WNOHANG)[0] == 0:
                    if time.time() - start > seconds:
                        os.kill(child, signal.SIGKILL)
                    continue
                del running[child]
                slots.append(slot)
                file = Path(folder) / f"{child}.json"
                missing = {"error": f"killed: it took more than {seconds} s or {gigabytes} GB"}
                row = json.loads(file.read_text()) if file.exists() else missing
                yield name, {**row, "seconds": round(time.time() - start, 1)}


def _end(children: Iterable[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _child(task: Any, file: Path, gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9),) * 2)
    try:
        row = task()
    except BaseException as error:
        row = {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:600]}
    file.with_suffix(".part").write_text(json.dumps(row))
    file.with_suffix(".part").rename(file)
    os._exit(0)


@torch.no_grad()
def examine(build: Any, backends: list[str]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row, differences = _play(build, backends, torch.float32)
    row |= differences
    if max(differences.values()) > ROUNDING:
        try:
            found, differences = _play(build, backends, torch.float64)
            row |= {f"{name}_double": value for name, value in differences.items()}
            row |= {name: value for name, value in found.items() if name == "sensitivity"}
        except Exception as error:
            row["double"] = f"it does not run in float64: {error}"[:300]
    return row


def _play(build: Any, backends: list[str], dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, float]]:
    """What the network converts to on the first backend, and how much it differs on each backend over the video."""
    torch.manual_seed(0)
    model = build().eval()
    if sum(p.numel() for p in model.parameters()) > LARGE:
        torch.set_num_threads(4)
    size, example = frames_for(model)
    settle(model, example(clip(size)[0]))
    model, video = model.to(dtype), [example(frame.to(dtype)) for frame in clip(size)]
    expected = [copy.deepcopy(model)(*call) for call in video]
    row = {
        "size": list(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "finite": finite(expected),
    }
    differences = {}
    for backend in backends:
        delta = deltaconvert.convert(model, video[0], backend=backend)
        errors = [difference(delta(*call), out) for call, out in zip(video, expected, strict=True)]
        differences["difference" if backend == backends[0] else f"difference_{backend}"] = max(errors)
        if backend == backends[0]:
            row |= describe(delta)
    if dtype is torch.float64 and max(differences.values()) > ROUNDING_DOUBLE:
        row["sensitivity"] = max(map(_sensitivity(model), video, expected))
    return row, differences


def _sensitivity(model: nn.Module) -> Callable[[Any, Any], float]:
    """How far a call's output moves when each weight of the dense network moves by its last bit."""
    other = copy.deepcopy(model)
    for weight in (*other.parameters(), *other.buffers()):
        if weight.is_floating_point():
            weight *= 1 + torch.finfo(weight.dtype).eps * torch.randn_like(weight).sign()
    return lambda call, expected: difference(copy.deepcopy(other)(*call), expected)


def describe(delta: Any) -> dict[str, Any]:
    explained = delta.explain()
    islands = sorted(explained.islands, key=lambda island: -island.macs)
    how = delta.info["capture"]
    ways = {
        "traced symbolically, around": "whole",
        "traced symbolically": "symbolic",
        "captured by": "export",
        "runs as it was": "parts",
    }
    total = sum(r.macs for r in explained.rows)
    products = (
        "matmul",
        "bmm",
        "baddbmm",
        "einsum",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
    )
    return {
        "way": next(way for start, way in ways.items() if how.startswith(start)),
        "how": how,
        "share": explained.delta_share,
        "macs": total,
        "attention": sum(r.macs for r in explained.rows if r.operator in products) / max(total, 1),
        "delta": sum(r.kind == "delta" for r in explained.rows),
        "nodes": sum(r.kind in ("delta", "dense") for r in explained.rows),
        "islands": [
            {"path": r.path, "operator": r.operator, "reason": r.reason, "share": r.share}
            for r in islands[:12]
        ],
    }


def frames_for(model: nn.Module) -> tuple[tuple[int, int], Any]:
    """The first size that the network runs on, and what turns a frame into a call."""
    config = getattr(model, "default_cfg", None) or {}
    own = tuple(config.get("input_size", (0, 0, 0))[1:])
    sizes = [size for size in (*SIZES[:2], own, *SIZES[2:]) if all(size)]
    if "RAFT" in type(model).__name__:
        sizes = [(128, 136)]
    calls = (lambda x: (x,), lambda x: ([x[0]],), lambda x: (x, x.flip(3)))
    last: Exception | None = None
    for size in dict.fromkeys(sizes):
        for call in calls if "RAFT" not in type(model).__name__ else calls[2:]:
            try:
                copy.deepcopy(model)(*call(clip(size)[0]))
                return size, call
            except Exception as error:
                last = last or error
    raise RuntimeError(f"runs on none of the sizes: {last}")


def clip(size: tuple[int, int]) -> list[Tensor]:
    """6 frames 1 3 H W: first, still, a patch, one pixel, two corners, all."""
    draw = torch.Generator().manual_seed(1)
    height, width = size
    patches = [
        [],
        [(slice(height // 3, height // 2), slice(width // 4, width // 3))],
        [(slice(height // 2, height // 2 + 1), slice(width // 5, width // 5 + 1))],
        [(slice(0, 5), slice(0, 7)), (slice(height - 3, height), slice(width - 9, width))],
        [(slice(None), slice(None))],
    ]
    frames = [torch.rand(1, 3, height, width, generator=draw)]
    for boxes in patches:
        frame = frames[-1].clone()
        for rows, cols in boxes:
            frame[:, :, rows, cols] = torch.rand(frame[:, :, rows, cols].shape, generator=draw)
        frames.append(frame)
    return frames


def settle(model: nn.Module, inputs: Any) -> None:
    """Make weights more like trained ones: constant parameters (gains of zero, layer scales of 1e-6) become random
    values around one or zero, and every batch norm takes the statistics of `inputs`."""
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            around = 0.0 if name.endswith("bias") else 1.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape))

    def measure(module: Any, inputs: Any) -> None:
        x = inputs[0]
        if module.running_mean is not None and x.dim() >= 2 and x.numel() // x.shape[1] > 1:
            dims = [d for d in range(x.dim()) if d != 1]
            module.running_mean.copy_(x.mean(dims))
            module.running_var.copy_(x.var(dims, unbiased=False) + 0.01)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model(*inputs)
    for hook in hooks:
        hook.remove()


def finite(outputs: Any) -> float:
    """The share of the output values that are numbers: a comparison of NaNs would say nothing."""
    tensors = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.numel()]
    return sum(float(t.isfinite().double().mean()) for t in tensors) / len(tensors) if tensors else 0.0


def difference(got: Any, expected: Any) -> float:
    """The largest difference of two outputs, as a part of the largest value; infinite where their shapes differ."""
    ours, theirs = pytree.tree_flatten(got), pytree.tree_flatten(expected)
    if ours[1] != theirs[1]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours[0], theirs[0], strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if not b.numel():
            continue
        a, b = a.double(), b.double()
        if not bool((a.isfinite() == b.isfinite()).all()):
            return float("inf")
        error = (a - b).nan_to_num().abs().max()
        worst = max(worst, float(error / b.nan_to_num().abs().max().clamp(min=1e-6)))
    return worst


if __name__ == "__main__":
    main()
