"""Exported networks in onnxruntime: (frame, state) -> (output, state) against the dense ONNX model, in one run.

    python benchmarks/onnx.py [--networks resnet50,dncnn] [--densities 0,1,5,25,100] [--repeats 5] [--out FILE]
    python benchmarks/onnx.py --device cuda   # with onnxruntime-gpu: TF32, as its CUDA provider computes by default

Both are ordinary ONNX files, in sessions with the same number of threads. They get the same frames in turns: those of
cpu.py, a box of fresh texture over a still textured background. The dense file is torch's own export of the network.
State is bound in place (deltaconvert.DeltaSession); frames and outputs lie in the memory of the CPU. On a GPU the dense
network runs in N H W C, which is faster there. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxruntime
import torch

import deltaconvert
from benchmarks.cpu import SIZES, environment, network, rotated, video
from benchmarks.engines import TOLERANCES, difference
from deltaconvert.text import table
from deltaconvert.watching import measure

DENSE = {"cpu": ["CPUExecutionProvider"], "cuda": [("CUDAExecutionProvider", {"prefer_nhwc": 1})]}
DELTA = {"cpu": ["CPUExecutionProvider"], "cuda": None}  # DeltaSession's own choice
# As a share of the largest value; TF32 came to 1.5e-3.
BOUNDS = {"cpu": TOLERANCES[torch.float32], "cuda": 5e-3}
WARM = 2  # the first frame is computed in full, the second is the first of its kind


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts: dict[str, Any] = {
        **environment(),
        "onnxruntime": onnxruntime.__version__,
        "device": options.device,
    }
    if options.device == "cuda":
        # onnxruntime warns of every ScatterND and of every new number of tiles.
        onnxruntime.set_default_logger_severity(3)
        facts["gpu"] = torch.cuda.get_device_name()
    facts["results"] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks.split(","):
            facts["results"] += measure_network(name, options, options.files or Path(scratch))
            if options.out:
                options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(results_table(facts["results"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet50,dncnn")
    parser.add_argument("--densities", default="0,1,5,10,25,50,100", help="percent of the frame in the box")
    parser.add_argument("--size", help="HxW instead of the network's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=list(DENSE), default="cpu")
    parser.add_argument("--files", type=Path, help="folder where the ONNX files are kept, and found again")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args()


def results_table(rows: list[dict[str, Any]]) -> str:
    head = ("network", "moving", "dense ms", "exported ms", "times as fast")
    body = [
        (
            row["network"],
            f"{row['density']:.0%}",
            f"{row['dense_ms']:.1f}",
            f"{row['delta_ms']:.1f}",
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    return table(head, body)


def measure_network(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """folder: for the ONNX files, which are not exported again if they lie there."""
    shape = SIZES[name]
    if options.size:
        shape = (*shape[:2], *map(int, options.size.split("x")))
    model, base = network(name), torch.rand(shape, generator=torch.Generator().manual_seed(1))
    size = "x".join(map(str, shape))
    exported, plain = folder / f"{name}_{size}_delta.onnx", folder / f"{name}_{size}_dense.onnx"
    if not plain.exists():
        delta = deltaconvert.convert(model, base, backend="reference")
        deltaconvert.export_onnx(delta, exported)
        torch.onnx.export(model, (base,), plain, dynamo=True, verbose=False)
    sparse = deltaconvert.DeltaSession(exported, providers=DELTA[options.device], options=threads(options))
    dense = onnxruntime.InferenceSession(plain, threads(options), providers=DENSE[options.device])
    densities = [float(percent) / 100 for percent in options.densities.split(",") if percent]
    return [row(name, sparse, dense, base, density, options) for density in densities]


def threads(options: argparse.Namespace) -> onnxruntime.SessionOptions:
    found = onnxruntime.SessionOptions()
    if options.device == "cuda":
        return found
    found.intra_op_num_threads = options.threads
    # Threads of one session would keep spinning while the other is timed.
    found.add_session_config_entry("session.force_spinning_stop", "1")
    return found


def row(
    name: str,
    sparse: deltaconvert.DeltaSession,
    dense: onnxruntime.InferenceSession,
    base: torch.Tensor,
    density: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Medians of --repeats frames at one density; the two outputs of every frame are compared."""
    times: dict[str, list[float]] = {"delta": [], "dense": []}
    errors = []
    sparse.reset()
    asked = dense.get_inputs()[0].name
    for number, frame in enumerate(video(base, density, WARM + options.repeats)):
        values = frame.contiguous().numpy()
        runs = {
            "delta": partial(sparse, values),
            "dense": lambda values=values: dense.run(None, {asked: values})[0],
        }
        outputs = {}
        for key in rotated(list(runs), number):
            outputs[key], spent = measure.timed(runs[key])
            times[key].append(spent)
        errors.append(difference(*(torch.from_numpy(outputs[key]) for key in ("delta", "dense"))))
    if max(errors) > BOUNDS[options.device]:
        raise SystemExit(
            f"{name} at {density:.0%}: the outputs differ by {max(errors):.2g} of the largest value"
        )
    delta_ms, dense_ms = (statistics.median(times[key][WARM:]) for key in ("delta", "dense"))
    print(
        f"{name} {density:.0%}: dense {dense_ms:.1f} ms, exported {delta_ms:.1f} ms, {dense_ms / delta_ms:.2f}x",
        flush=True,
    )
    return {
        "network": name,
        "shape": list(base.shape),
        "density": density,
        "delta_ms": delta_ms,
        "dense_ms": dense_ms,
        "ratio": dense_ms / delta_ms,
        "error": max(errors),
        "crossover": float(sparse.metadata["deltaconvert.crossover"]),
    }


if __name__ == "__main__":
    main()
