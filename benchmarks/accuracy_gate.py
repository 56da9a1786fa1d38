"""What the denoiser's gate alone does, computed quickly on a CPU.

    python benchmarks/accuracy_gate.py --out FILE --threshold 0.016

Without thresholds in the layers, an output is what the dense network makes of the stored frame, and all masks follow
from the gate's by the layers' reach. So the network only has to run on the frames that are scored, every tenth of 200
of full size. The work is exact; the score is that of the scored frames. Test frames and noise are those of accuracy.py;
`--rehearse` plays 50 frames of the calibration's range instead.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import environment
from benchmarks.tasks import TASKS, Task
from deltaconvert.gate import Gate, Watch, grown

EVERY = 10  # every so many frames, one is scored


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gate", default='{"smooth": 13, "recent": 8, "peak": 64, "dilate": 16}')
    parser.add_argument("--threshold", type=float, help="none: the dense network")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    with torch.no_grad():
        task = TASKS["denoise"](24, 200)
        task.network.eval()
        inputs_of(task, task.calibration)  # noise is drawn in the order of accuracy.py
        numbers = range(100, 150) if options.rehearse else task.test
        begin = time.time()
        gate = None if options.threshold is None else Gate.of(json.loads(options.gate))
        row = play(task, numbers, gate, options.threshold or 0.0)
    row |= {"rehearsal": options.rehearse, "seconds": time.time() - begin, **environment()}
    kept["rows"].append(row)
    options.out.write_text(json.dumps(kept, indent=1) + "\n")
    print({name: row[name] for name in ("gate", "threshold", "work", "psnr", "seconds")}, flush=True)


def inputs_of(task: Task, numbers: Sequence[int], **size: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Clean pictures (1, 3, H, W) and their noisy frames."""
    pictures = [picture.permute(2, 0, 1)[None].float() for picture in task.frames(numbers)]
    return pictures, [task.prepare(picture, **size) for picture in pictures]


def play(task: Task, numbers: Sequence[int], gate: Gate | None, threshold: float) -> dict[str, object]:
    pictures, frames = inputs_of(task, numbers)
    stored, work = (frames, 1.0) if gate is None else played(task.network, looked(frames, gate, threshold))
    return {
        "gate": gate and gate.to_json(),
        "threshold": threshold,
        "work": work,
        "psnr": psnr(task.network, pictures, stored, EVERY),
        "frames": len(frames),
        "scored": len(frames) // EVERY,
    }


def looked(frames: Sequence[Tensor], gate: Gate, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """For each frame: what is stored after it, and the mask of what passed."""
    stored = torch.full_like(frames[0], float("nan"))
    watch = Watch(gate, tuple(stored.shape), torch.float32, stored.device, threshold)
    for frame in frames:
        taken, mask = watch.look(frame, stored)
        stored = torch.where(mask, taken, stored)
        yield stored, mask


def played(network: nn.Module, looks: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], float]:
    """What was stored after each frame, and the share of the work, over all frames after the first."""
    macs = [layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    stored, work = [], []
    for frame, mask in looks:
        stored.append(frame)
        if len(stored) > 1:
            found = zip(macs, shares(mask, len(macs)), strict=True)
            work.append(sum(count * share for count, share in found) / sum(macs))
    return stored, sum(work) / len(work)


def psnr(network: nn.Module, pictures: Sequence[Tensor], stored: Sequence[Tensor], every: int) -> float:
    """In dB, from the mean squared error over every EVERYth frame."""
    pairs = list(zip(pictures, stored, strict=True))[every - 1 :: every]
    errors = [
        (network(frame).clamp(0, 1) - picture.mean(1, keepdim=True) / 255).square().mean()
        for picture, frame in pairs
    ]
    return -10 * math.log10(float(torch.stack(errors).mean()))


def shares(mask: Tensor, layers: int) -> list[float]:
    """The share of the pixels that each layer computes; all layers are 3x3 convolutions."""
    found = []
    for _ in range(layers):
        mask = grown(mask, 1)
        found.append(float(mask.float().mean()))
    return found


if __name__ == "__main__":
    main()
