"""Whether a frame is best read in place on a GPU, copied first, or written to the graph's own memory (frame_buffers()).

    python benchmarks/gpu_copy.py [--units resnet50:half:1,resnet50:half:8] [--out FILE]

Times still frames and boxes of 5 %, as N C H W, in channels last and as bytes: one network for each way, the ways in
turns, medians in microseconds. Frames come from three tensors in turn, so that no call has the address of the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deltaconvert
from benchmarks.gpu import model_and_frame
from benchmarks.gpu_dense import timed
from benchmarks.gpu_frames import video
from benchmarks.gpu_record import Unit, environment

FRAMES, ROUNDS = 12, 4


class OfBytes(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype) / 255)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default="resnet50:half:1,resnet50:half:8", help="network:type:batch, ...")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for unit in map(Unit.of, options.units.split(",")):
        model, base = model_and_frame(unit)
        bytes_of_base = (255 * base.float().clamp(0, 1)).to(torch.uint8)
        for kind, network, first in (
            ("N C H W", model, base.contiguous()),
            ("channels last", model, channels_last(base)),
            ("bytes", OfBytes(model, base.dtype).eval(), bytes_of_base),
            ("bytes, channels last", OfBytes(model, base.dtype).eval(), channels_last(bytes_of_base)),
        ):
            delta = deltaconvert.convert(network, first)
            delta(first)
            for density in (0.0, 0.05):
                row = {**unit._asdict(), "frames": kind, "density": density, **ways(delta, first, density)}
                rows.append(row)
                print(row, flush=True)
            del delta
            if options.out:
                options.out.write_text(json.dumps({**environment(), "results": rows}, indent=1) + "\n")


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def ways(delta: deltaconvert.DeltaModel, base: Tensor, density: float) -> dict[str, float]:
    """Median microseconds of a frame: `where it lies`, `copied`, `own memory`."""
    frames = list(video(base.float(), density, 3)) if density else [base.clone() for _ in range(3)]
    order = torch.channels_last if base.stride(1) == 1 else torch.contiguous_format
    frames = [frame.to(base.dtype).contiguous(memory_format=order) for frame in frames]
    if density and base.dtype == torch.uint8:
        for frame in frames:  # new texture of bytes
            changed = frame != base
            frame[changed] = torch.randint_like(frame, 256)[changed]
    recording = delta._program._backend._recording
    (buffer,) = delta.frame_buffers()
    in_place = recording._in_place
    places = {"where it lies": in_place, "copied": set(), "own memory": in_place}
    times: dict[str, list[float]] = {way: [] for way in places}
    queue = [frames[i % 3] for i in range(FRAMES)]
    for _ in range(ROUNDS):
        for way, slots in places.items():
            recording._in_place = slots
            place = buffer.copy_ if way == "own memory" else lambda frame: frame
            times[way] += timed(delta, queue, place)[0][3:]
    recording._in_place = in_place
    return {way: round(statistics.median(found) * 1e3, 1) for way, found in times.items()}


if __name__ == "__main__":
    main()
