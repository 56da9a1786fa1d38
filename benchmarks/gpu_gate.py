"""What a gate costs on a GPU, at 1080p, batch 8 and half precision: kernels/gate.cu against torch, interleaved.

    python benchmarks/gpu_gate.py --out FILE

The frames show a noisy scene with a moving box. In both cases, the gate is followed by one convolution with stride 2.
For gates with a ceiling a lamp is switched on as well, so that tiles wait in all frames that are timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from deltaconvert.watching.measure import environment

GATES: tuple[dict[str, Any], ...] = (
    {},
    {"dilate": 2},
    {"smooth": 9, "peak": 18.0, "dilate": 12, "weak": 0.25},
    {"smooth": 9, "recent": 12, "peak": 64.0, "dilate": 16},
    {"max_density": 0.05},
    {"max_density": 0.05, "smooth": 9, "dilate": 12, "refresh": 100},
)
SETTLES = 4  # frames: full, captured, played
FRAMES = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    calm = clip()
    lamp = [frame + 0.3 if t >= SETTLES else frame for t, frame in enumerate(calm)]
    facts = {**environment(), "gpu": torch.cuda.get_device_name(), "shape": list(calm[0].shape), "rows": []}
    for gate in GATES:
        for name, frames in {"calm": calm, "lamp": lamp}.items():
            if name == "lamp" and "max_density" not in gate:
                continue
            row = {"clip": name, **measure(gate, frames)}
            print(row, flush=True)
            facts["rows"].append(row)
            if options.out is not None:
                options.out.write_text(json.dumps(facts, indent=1) + "\n")


def clip() -> list[Tensor]:
    draw = torch.Generator("cuda").manual_seed(0)
    scene = torch.rand(8, 3, 1080, 1920, device="cuda", generator=draw)
    found = []
    for t in range(FRAMES):
        frame = scene + torch.randn(scene.shape, device="cuda", generator=draw) * 0.01
        frame[:, :, 100:300, 50 * t : 50 * t + 200] = 0.5
        found.append(frame.half())
    return found


@torch.no_grad()
def measure(gate: dict[str, Any], frames: list[Tensor]) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 8, 3, padding=1, stride=2).cuda().half().eval()
    models = {}
    for way in ("kernel", "torch") if gate else ("kernel",):
        model = deltaconvert.convert(network, frames[0], threshold={"input": 0.06}, gate=gate or None)
        edge = next(iter(model._program.edges.values()))
        if way == "torch":
            edge._looks = None
        models[way] = model
    times: dict[str, list[float]] = {way: [] for way in models}
    differ = 0
    for place, frame in enumerate(frames):
        for way, model in models.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            model(frame)
            end.record()
            torch.cuda.synchronize()
            if place >= SETTLES:
                times[way].append(begin.elapsed_time(end))
        first, *others = (model.input_masks() for model in models.values())
        differ += sum(int((first != other).sum()) for other in others)
    return {
        "gate": gate,
        **{f"{way}_ms": statistics.median(found) for way, found in times.items()},
        "density": float(first.float().mean()),
        "masks_differ": differ,
    }


if __name__ == "__main__":
    main()
