"""Up to which size the kernel that marks pixels should also list them: SMALL of backends/cuda/steps.py.

    python benchmarks/gpu_lists.py [--out FILE]

The alternative is a launch of its own that lists them. Both ways play frames in turns through depthwise and 1x1
convolutions with thresholds, on maps of growing size. Prints medians in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
from benchmarks.gpu_dense import timed
from benchmarks.gpu_frames import video
from benchmarks.gpu_record import environment
from deltaconvert.backends.cuda import steps

BLOCKS, CHANNELS, FRAMES, ROUNDS = 4, 32, 12, 4
SIZES = [(180, 320), (270, 480), (360, 640), (540, 960), (720, 1280), (1080, 1920)]
WAYS = {"marking kernel": 1 << 62, "launch": 0}  # SMALL


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for size in SIZES:
        base = torch.rand(1, 3, *size, device="cuda", dtype=torch.float16)
        models = {}
        for way, steps.SMALL in WAYS.items():  # type: ignore[misc]
            models[way] = deltaconvert.convert(
                network(), base, threshold={"activation": 0.01, "linear": 0.01}
            )
            models[way](base)
        for density in (0, 1, 5, 25, 100):
            frames = [*video(base, density / 100, FRAMES)]
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            outputs: dict[str, torch.Tensor] = {}
            for _ in range(ROUNDS):
                for way, model in models.items():
                    (buffer,) = model.frame_buffers()
                    found, _, outputs[way] = timed(model, [*frames[:2], *frames], buffer.copy_)
                    times[way] += found[2:]
            assert torch.equal(*outputs.values()), "both ways compute the same"
            row = {way: round(statistics.median(found) * 1e3, 1) for way, found in times.items()}
            rows.append({"pixels": size[0] * size[1], "density": density / 100, **row})
            print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps({**environment(), "results": rows}, indent=1) + "\n")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 1), nn.ReLU()]
    for _ in range(BLOCKS):
        near = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        layers += [near, nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 1)]
    return nn.Sequential(*layers).cuda().half().eval()


if __name__ == "__main__":
    main()
