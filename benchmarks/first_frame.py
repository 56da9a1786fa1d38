"""Seconds until the first output on a GPU: in a process that finds no caches (cold), then in others (warm).

    python benchmarks/first_frame.py [--units resnet50:half:1,...] --out FILE

A cold process compiles every kernel and measures which tile suits each convolution. A warm one reads both from the cold
one's caches, which lie in a temporary folder; tracing, planning, cuDNN's start and capturing remain.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WARM = 3  # processes
CHILD = "child"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default="resnet50:half:1", help="network:type:batch, ...")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from benchmarks.gpu_record import here_and_now, read

    facts = {**read(None, "rows"), **here_and_now()}
    for unit in options.units.split(","):
        with tempfile.TemporaryDirectory() as folder:
            caches = {"XDG_CACHE_HOME": folder, "CUPY_CACHE_DIR": f"{folder}/cupy"}
            for start in ("cold", *["warm"] * WARM):
                command = [sys.executable, __file__, CHILD, unit]
                told = subprocess.run(command, env={**os.environ, **caches}, check=True, capture_output=True)
                row = {"unit": unit, "start": start, **json.loads(told.stdout.splitlines()[-1])}
                print(row, flush=True)
                facts["rows"].append(row)
                if options.out is not None:
                    options.out.write_text(json.dumps(facts, indent=1) + "\n")


def child(unit: str) -> dict[str, float]:
    """Seconds of this process until its network's first output is there."""
    times = {"began": time.perf_counter()}
    import torch

    import deltaconvert
    from benchmarks.gpu import model_and_frame
    from benchmarks.gpu_dense import searching
    from benchmarks.gpu_record import Unit

    torch.cuda.init()
    times["imports"] = time.perf_counter()
    model, frame = model_and_frame(Unit.of(unit))
    torch.cuda.synchronize()
    times["network"] = time.perf_counter()
    with searching(False):  # torch's default; only a baseline would turn the search on
        delta = deltaconvert.convert(model, frame)
        times["convert"] = time.perf_counter()
        delta(frame)
        torch.cuda.synchronize()
    times["first_frame"] = time.perf_counter()
    seconds = {name: times[name] - times[before] for before, name in itertools.pairwise(times)}
    return {**seconds, "convert_and_first_frame": seconds["convert"] + seconds["first_frame"]}


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(child(sys.argv[2])))
    else:
        main()
