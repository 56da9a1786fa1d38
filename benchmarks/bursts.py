"""What `max_density` does to the time of a frame: bursts in which all of the picture changes at once.

    python benchmarks/bursts.py [--device cuda [--by kernels,torch]] [--networks resnet50,mobilenetv2] --out FILE

A clip alternates between calm frames, in which a box of fresh texture moves, and bursts: in turn a lamp that is
switched on or off (every pixel changes by the same amount) and a cut (every pixel is new). Each burst is followed
until no tile waits any more. Rows have the median of the calm frames, the longest frame and the most work of each
burst, how many frames a burst takes, and the dense network's frame. On a GPU, kernels/ceiling.cu chooses tiles; `--by
kernels,torch` also measures a second network for which torch chooses them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import benchmarks  # noqa: F401, and this folder leaves sys.path
import deltaconvert
import model_zoo
from deltaconvert.watching.measure import Dense, environment, timed

CEILINGS = (1.0, 0.25, 0.1, 0.05)
SIZES = {"cpu": (360, 640), "cuda": (1080, 1920)}
BURSTS, CALM, BOX = 6, 12, 0.12  # BOX: sides of the moving box, as a share of the frame's
LONGEST = 200  # frames of a burst, at most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--networks", default="resnet50,mobilenetv2")
    parser.add_argument("--ceilings", default=",".join(map(str, CEILINGS)))
    parser.add_argument("--by", default="kernels", help="kernels, torch or both, on a GPU")
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    card = torch.cuda.get_device_name() if options.device == "cuda" else None
    facts: dict[str, Any] = {**environment(), "command": " ".join(sys.argv), "card": card, "rows": []}
    for name in options.networks.split(","):
        for ceiling in map(float, options.ceilings.split(",")):
            for by in options.by.split(",") if ceiling < 1 else ("kernels",):
                row = {
                    "network": name,
                    "ceiling": ceiling,
                    "by": by,
                    **burst_times(name, ceiling, by, options),
                }
                print(row, flush=True)
                facts["rows"].append(row)
                options.out.write_text(json.dumps(facts, indent=1) + "\n")


def burst_times(name: str, ceiling: float, by: str, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    numbers = torch.float32 if device.type == "cpu" else torch.float16
    network = model_zoo.create(name, seed=0).to(device, numbers)
    clip = Clip((1, 3, *SIZES[device.type]), device, numbers)
    model = deltaconvert.convert(network, clip.picture, gate={"max_density": ceiling})
    if by == "torch" and device.type == "cuda":
        for edge in model._program.edges.values():
            edge._looks = None
    dense = Dense(model)
    calm, longest, lasted, widest, most = [], [], [], 0.0, []
    for number in range(options.bursts):
        for place, frame in enumerate(clip.calm()):
            _, spent = timed_alone(model, frame)
            calm += [spent] if number or place > 2 else []
        times, works = [], []
        for frame in clip.burst(number):
            _, spent = timed_alone(model, frame)
            times.append(spent)
            works.append(model.stats().work)
            widest = max(widest, float(model.input_masks().float().mean()))
            if not waiting(model):
                break
        longest.append(max(times))
        lasted.append(len(times))
        most.append(max(works))
    still = [timed(dense, clip.picture)[1] for _ in range(8)][3:]
    return {
        "size": list(SIZES[device.type]),
        "calm_ms": statistics.median(calm),
        "burst_ms": statistics.median(longest),
        "burst_ms_each": longest,
        "burst_work_each": most,
        "burst_frames": statistics.median(lasted),
        "changed_at_most": widest,
        "dense_ms": statistics.median(still),
    }


def timed_alone(model: deltaconvert.DeltaModel, frame: Tensor) -> tuple[Any, float]:
    """As `timed`, once the frame exists: on a GPU it may still be computed when it is handed out."""
    if frame.is_cuda:
        torch.cuda.synchronize()
    return timed(model, frame)


def waiting(model: deltaconvert.DeltaModel) -> int:
    return sum(counts["waiting"] for counts in model.stats().gates.values())


class Clip:
    """Frames made on request from a seed; `picture` is the still background."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, numbers: torch.dtype):
        self._shape, self._device, self._numbers = shape, device, numbers
        self._draw = torch.Generator().manual_seed(0)
        self.picture = self._fresh(shape)

    def _fresh(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._draw).to(self._device, self._numbers)

    def _with_box(self, step: int) -> Tensor:
        rows, columns = (int(side * BOX) for side in self._shape[2:])
        top, left = self._shape[2] // 3, step * columns // 8
        frame = self.picture.clone()
        frame[:, :, top : top + rows, left : left + columns] = self._fresh((1, 3, rows, columns))
        return frame

    def calm(self) -> Iterator[Tensor]:
        for step in range(CALM):
            yield self._with_box(step)

    def burst(self, number: int) -> Iterator[Tensor]:
        """The lamp and the cut in turn; the box goes on moving."""
        lamp = 0.25 * (-1) ** (number // 2)
        self.picture = self._fresh(self._shape) if number % 2 else self.picture + lamp
        for step in range(LONGEST):
            yield self._with_box(CALM + step % CALM)


if __name__ == "__main__":
    main()
