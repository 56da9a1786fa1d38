"""The record of benchmarks/gpu.py: its units, how its JSON file grows, and its tables.

A record may hold units of several runs, so each row says when, where, by which command and at which commit it was
measured. All rows of a unit are of one run, so that its ratios are.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert

SIZES = {"hrnet_w32": (384, 288)}
SIZE = (1080, 1920)  # of all other networks
BOXES = ("still", "1%", "5%", "10%", "25%", "50%", "100%")  # the cases of a complete unit
OF_A_RUN = ("date", "command")
NAMES = {
    "resnet50": "ResNet-50",
    "mobilenetv2": "MobileNetV2",
    "dncnn": "DnCNN",
    "unet": "U-Net",
    "hrnet_w32": "HRNet-W32",
    "deeplabv3_resnet50": "DeepLabV3 (ResNet-50)",
    "efficientnet_b0": "EfficientNet-B0",
}
SHOWN = (  # in the README and at the top of docs/performance.md
    "resnet50:tf32:8",
    "resnet50:half:8",
    "resnet50:tf32:1",
    "resnet50:half:1",
    "mobilenetv2:half:8",
    "dncnn:half:1",
    "unet:half:8",
    "hrnet_w32:half:32",
    "deeplabv3_resnet50:half:1",
    "efficientnet_b0:half:8",
)


class Unit(NamedTuple):
    network: str
    type: str
    batch: int

    @classmethod
    def of(cls, text: str) -> Unit:
        name, kind, batch = text.split(":")
        return cls(name, kind, int(batch))

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Unit:
        return cls(row["network"], row["type"], row["batch"])

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @property
    def size(self) -> tuple[int, int]:
        return SIZES.get(self.network, SIZE)


def most_telling_first() -> list[Unit]:
    """All units: first ResNet-50 and a batch of poses, then all networks for one type and batch after the other."""
    networks = ("resnet50", "mobilenetv2", "efficientnet_b0", "unet", "deeplabv3_resnet50", "dncnn")
    large = [Unit(n, kind, batch) for batch in (1, 8) for kind in ("half", "tf32") for n in networks]
    poses = [Unit("hrnet_w32", kind, batch) for kind in ("half", "tf32") for batch in (32, 1, 64)]
    first = [Unit("resnet50", kind, batch) for kind in ("half", "tf32") for batch in (1, 8)]
    return list(dict.fromkeys([*first, poses[0], *large, *poses, Unit("resnet50", "float", 1)]))


def environment() -> dict[str, str]:
    import cupy

    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "deltaconvert": deltaconvert.__version__,
    }


def here_and_now() -> dict[str, str]:
    """The date and commit of a row. Without git, $DELTACONVERT_COMMIT has to say which commit this is."""
    known = os.environ.get("DELTACONVERT_COMMIT")
    if not known:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        known = told.stdout.strip() or "unknown"
    return {"date": time.strftime("%Y-%m-%d"), "commit": known}


def read(out: Path | None, rows: str = "results") -> dict[str, Any]:
    """The facts of an earlier slice of this run on the same GPU and versions; otherwise fresh ones without `rows`."""
    facts = environment()
    if out is None or not out.exists():
        return {**facts, rows: []}
    known = json.loads(out.read_text())
    if any(known[key] != facts[key] for key in facts if key not in OF_A_RUN):
        raise SystemExit(f"{out} was measured elsewhere: give another --out")
    return known


def merge(record: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the record, in which each complete unit of `new` replaces the old one; what was done to each unit)."""
    for key in ("gpu", "torch", "cuda"):
        if record[key] != new[key]:
            raise SystemExit(f"{key} is {record[key]} in the record and {new[key]} in the new file")
    units, told = by_unit(record), []
    for unit, rows in by_unit(new).items():
        missing = set(BOXES) - {row["case"] for row in rows}
        if missing:
            told.append(f"{unit}: left out, it has no {', '.join(sorted(missing))}")
            continue
        told.append(f"{unit}: {'replaced' if unit in units else 'new'}")
        units[unit] = rows
    order = {unit: place for place, unit in enumerate(most_telling_first())}
    ordered = sorted(units, key=lambda unit: order.get(unit, len(order)))
    # Rows have their own date and commit.
    kept = {key: value for key, value in record.items() if key not in OF_A_RUN}
    return {**kept, "results": [row for unit in ordered for row in units[unit]]}, told


def by_unit(facts: dict[str, Any]) -> dict[Unit, list[dict[str, Any]]]:
    units: dict[Unit, list[dict[str, Any]]] = {}
    for row in facts["results"]:
        units.setdefault(Unit.of_row(row), []).append(row)
    return units


def tables(facts: dict[str, Any]) -> str:
    """Markdown: how many times faster than the best dense engine of the run, by unit and case; then the details."""
    names = list(dict.fromkeys(row["case"] for row in facts["results"] if row["density"] is not None))
    head = ("network", "batch", "type", "best dense", *names)
    body, details = [], []
    for unit, rows in by_unit(facts).items():
        boxes = {row["case"]: times_faster(row["ratio"]) for row in rows if row["density"] is not None}
        own = (f"{unit.network} {unit.size[1]}x{unit.size[0]}", str(unit.batch), unit.type)
        dense = f"{rows[0]['best']}, {dense_ms(rows):.3g} ms"
        body.append((*own, dense, *(boxes.get(name, "") for name in names)))
        details += [(*own, *_details(row)) for row in rows]
    columns = "network,batch,type,case,dense ms,delta ms,p99 ms,host ms,ratio,work,e,of the roofline,state GB,peak GB"
    commits = sorted({f"{row['date']} at {row['commit']}" for row in facts["results"]})
    where = f"{facts['gpu']}, torch {facts['torch']}, CUDA {facts['cuda']}; measured {', '.join(commits)}"
    return "\n\n".join([markdown(head, body), where, markdown(columns.split(","), details)])


def _details(row: dict[str, Any]) -> tuple[str, ...]:
    case = row["case"] + (f", threshold {row['threshold']:.2g}" if row["threshold"] else "")
    # These are the last frame's only, and a clip's frames differ.
    of_last = ("work", "efficiency", "roofline")
    numbers = (
        f"{row[key]:.3g}" if row["density"] is not None or key not in of_last else ""
        for key in ("delta_ms", "p99_ms", "host_ms", "ratio", *of_last)
    )
    memory = (f"{row[key] / 1e9:.2f}" for key in ("state_bytes", "peak_bytes"))
    return case, f"{row['dense_ms']:.3g}", *numbers, *memory


def beside_the_ratio(facts: dict[str, Any]) -> str:
    """Memory; and for boxes of 5 % and 100 % how even frames are and how close they come to the least possible time."""
    head = ["unit", "state, GB", "peak, GB"]
    head += [f"{case}: {what}" for case in ("5 %", "100 %") for what in ("ms", "p99", "of the roofline")]
    body = []
    for unit, rows in by_unit(facts).items():
        of = {row["case"]: row for row in rows if row["density"] is not None}
        state, peak = (f"{of['100%'][key] / 1e9:.2f}" for key in ("state_bytes", "peak_bytes"))
        # The peak of older rows counted the test frames in.
        line = [str(unit), state, peak if "frames" in rows[0] else ""]
        for row in (of["5%"], of["100%"]):
            line += [f"{row['delta_ms']:.3g}", f"{row['p99_ms']:.3g}", f"{row['roofline']:.0%}"]
        body.append(line)
    return markdown(head, body)


def clips(facts: dict[str, Any]) -> str:
    """Real clips, exact and with a threshold on the frame."""
    found: dict[tuple[Unit, str], dict[bool, dict[str, Any]]] = {}
    for row in (row for row in facts["results"] if row["density"] is None):
        found.setdefault((Unit.of_row(row), row["case"]), {}).setdefault(row["threshold"] > 0, row)
    body = []
    for (unit, clip), rows in found.items():
        own = [str(unit), clip, f"{next(iter(rows.values()))['dense_ms']:.3g}"]
        body.append([*own, *_clip(rows.get(False)), *_clip(rows.get(True))])
    three = ("ms", "p99", "times faster")
    head = ["unit", "clip", "dense, ms", *(f"{how}: {what}" for how in ("exact", "10/255") for what in three)]
    return markdown(head, body)


def _clip(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 3
    return [f"{row['delta_ms']:.3g}", f"{row['p99_ms']:.3g}", times_faster(row["ratio"])]


def readme(facts: dict[str, Any]) -> str:
    """The table of the README: how many times faster than dense each box is."""
    return _shown(facts, lambda row: times_faster(row["ratio"]))


def milliseconds(facts: dict[str, Any]) -> str:
    """The table of the README in milliseconds per frame."""
    return _shown(facts, lambda row: f"{row['delta_ms']:#.3g}")


def _shown(facts: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> str:
    """The units at the top of the pages, as far as they were measured."""
    body, units = [], by_unit(facts)
    for unit in map(Unit.of, SHOWN):
        rows = [row for row in units.get(unit, []) if row["density"] is not None]
        if rows:
            numbers = f"{unit.type.replace('tf32', 'TF32')}, {unit.batch}"
            body.append((NAMES[unit.network], numbers, f"{dense_ms(rows):#.3g} ms", *map(cell, rows)))
    return markdown(("network", "numbers, batch", "best dense", *BOXES), body)


def dense_ms(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.median(row["dense_ms"] for row in rows)


def times_faster(ratio: float) -> str:
    """Two digits: 0.90x, 7.3x, 150x."""
    text = f"{ratio:#.2g}".rstrip(".")
    return f"{float(text):.0f}x" if "e" in text else f"{text}x"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
