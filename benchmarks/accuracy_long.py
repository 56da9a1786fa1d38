"""Whether the loss keeps growing: plays a task's test frames back and forth without a reset.

    python benchmarks/accuracy_long.py --task upscale --calibration 45 --passes 6 --out FILE

For each pass: how much PSNR against the truth is lost, with the setting that calibrate found for `--budget` and with
the first setting that its search began with, without narrow changes. Nothing is chosen by this.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.curves.run import Run
from deltaconvert.calibration.setting import Setting


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=("upscale", "denoise"), default="upscale")
    parser.add_argument("--budget", default="1", help="whose setting of calibrate is played")
    parser.add_argument("--calibration", type=int, default=45, help="frames")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run, kept = Run.of_record(options)
    task = run.task
    trials = run.trials()
    settings = {
        "calibrate": Setting.of(kept["settings"][f"ours {options.budget}"]),
        "wide": Setting.of(kept["begun"][0]),
    }
    pictures = (picture.permute(2, 0, 1)[None].float() for picture in task.frames(task.test))
    frames = [task.prepare(picture.contiguous()) for picture in pictures]
    dense = task.score([task.decode(task.network(x)) for x in frames], [], task.test)
    found: dict[str, list[float]] = {}
    for name, setting in settings.items():
        model = deltaconvert.convert(task.network, frames[0], threshold=trials.thresholds(setting))
        for turn in range(options.passes):
            places = range(len(frames))[:: -1 if turn % 2 else 1]
            shown = {place: task.decode(model(frames[place])).clone() for place in places}
            outputs = [shown[place] for place in range(len(frames))]
            found.setdefault(name, []).append(round(dense - task.score(outputs, [], task.test), 4))
            print(name, found[name], flush=True)
    facts = {
        **environment(),
        "task": task.name,
        "frames": len(frames),
        "dense": dense,
        "loss of each pass": found,
    }
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
