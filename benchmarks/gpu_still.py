"""What it gives on a GPU that still frames skip a part of the graph, and what it costs other frames.

    python benchmarks/gpu_still.py [--units resnet50:half:1,efficientnet_b0:half:1,...] [--out FILE]

Each network is converted twice: with a part that is skipped, however few launches are in it, and without
(backends/cuda/skipping.py). The two are called in turns on still frames and on boxes of 1, 5 and 25 %, as
benchmarks/gpu.py plays them. Prints medians in microseconds; outputs have to be the same bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
from benchmarks import gpu_dense
from benchmarks.gpu import model_and_frame
from benchmarks.gpu_dense import timed
from benchmarks.gpu_frames import there_and_back, video
from benchmarks.gpu_record import Unit, environment, here_and_now
from deltaconvert.backends.cuda import skipping

UNITS = "resnet50:half:1,efficientnet_b0:half:1,deeplabv3_resnet50:tf32:1,hrnet_w32:half:1"
DENSITIES = (0.0, 0.01, 0.05, 0.25)
FRAMES, ROUNDS, SETTLING = 24, 5, 3
WORTH = {"skipping": 1, "plain": 1 << 30}  # the least number of launches in a part that is skipped
AHEAD = 1_000_000  # cycles that the device sleeps: a call takes longer than a still frame, most of all on a busy host


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default=UNITS, help="network:type:batch, ...")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = {
        **environment(),
        **here_and_now(),
        "command": f"python benchmarks/gpu_still.py --units {options.units}",
    }
    rows = []
    for unit in map(Unit.of, options.units.split(",")):
        model, base = model_and_frame(unit)
        ways = {}
        for way, least in WORTH.items():
            with mock.patch.object(skipping, "WORTH", least):
                ways[way] = deltaconvert.convert(model, base)
                ways[way](base)
        for density in DENSITIES:
            found = medians(ways, list(video(base, density, FRAMES // 2)))
            told = {"still": ways["skipping"]._program.still, "density": density, **found}
            rows.append({**unit._asdict(), **told})
            print(rows[-1], flush=True)
        if options.out:
            options.out.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")
        del ways
        torch.cuda.empty_cache()


def medians(ways: dict[str, deltaconvert.DeltaModel], frames: Sequence[Tensor]) -> dict[str, float]:
    """The median microseconds of a call, for each of the two ways."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    walk = there_and_back(frames)
    for _ in range(ROUNDS):
        queue = [next(walk) for _ in range(FRAMES)]
        outputs = []
        for way, delta in ways.items():
            (buffer,) = delta.frame_buffers()
            with mock.patch.object(gpu_dense, "AHEAD", AHEAD):
                found, _, output = timed(delta, queue, buffer.copy_)
            times[way] += found[SETTLING:]
            outputs.append(torch.utils._pytree.tree_leaves(output)[0].clone())
        if not torch.equal(*outputs):
            raise RuntimeError("the outputs differ")
    return {way: round(statistics.median(found) * 1e3, 1) for way, found in times.items()}


if __name__ == "__main__":
    main()
