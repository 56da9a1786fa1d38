"""Which thresholds calibrate should begin with, judged on calibration frames.

    python benchmarks/accuracy_alike.py --tasks juggle,highway --out FILE

One number sets all layers, in two ways: as a share of each map's magnitude (`magnitude`), or so that what each layer
drops causes the same error at the end of the network (`end`, Trials.alike). Both are tried without thresholds at
convolutions that no activation follows, and with thresholds twice as high there (`linear`). Gate and input threshold
are the same for all. No test frame is played.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.tasks import TASKS
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate

INPUT, GATE = 0.05, Gate(dilate=2)
SCALES = (0.03, 0.06, 0.12, 0.24, 0.48)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="juggle,highway,bottle,upscale")
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--ways", default="magnitude,end,linear")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.tasks.split(","):
        with torch.no_grad():
            kept[name] = measured(name, options)
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


def measured(name: str, options: argparse.Namespace) -> dict[str, object]:
    task = TASKS[name](options.calibration, 1)
    task.network.eval()
    pictures = task.frames(task.calibration)
    clip = [[task.prepare(picture.permute(2, 0, 1)[None].float()).contiguous()] for picture in pictures]
    delta = deltaconvert.convert(task.network, *clip[0], backend="reference")
    trials = Trials(delta, clip, task.metric, decode=task.features, guide=task.guide or task.metric)
    begin = time.time()
    alike = trials.alike()
    plain = [float(site.kind != "linear") for site in trials.sites]
    ways = {
        "magnitude": plain,
        "end": [share * kept for share, kept in zip(alike, plain, strict=True)],
        "linear": [share * (2 - kept) for share, kept in zip(alike, plain, strict=True)],
    }
    found = {"frames": len(clip), "seconds_of_gradients": time.time() - begin, **environment()}
    for way in options.ways.split(","):
        found[way] = []
        for scale in SCALES:
            setting = Setting(tuple(ways[way]), gate=GATE).times(scale)
            for place, site in enumerate(trials.sites):
                setting = setting.at(place, INPUT) if site.kind == "input" else setting
            outcome = trials(setting)
            found[way].append({"scale": scale, "loss": outcome.loss, "work": outcome.work})
            print(name, way, found[way][-1], flush=True)
    return found


if __name__ == "__main__":
    main()
