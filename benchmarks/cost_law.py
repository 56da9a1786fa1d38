"""The cost of a frame as a law: milliseconds = a + b * work, for each unit that benchmarks/gpu.py measured.

    python benchmarks/cost_law.py benchmarks/results/gpu.json       a table, for docs/performance_tables.md

work is the share of the network's multiply-accumulates at changed pixels. a is the cost of a frame in which nothing
changes, b what the whole network costs on top: b against the dense network's time says how well the work itself runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_record import by_unit, dense_ms, markdown


class Law(NamedTuple):
    """a and b are in milliseconds; off is the largest error of a measured point, as a share of it."""

    a: float
    b: float
    off: float


def fit(points: Sequence[tuple[float, float]]) -> Law:
    """Fit (work, milliseconds) by the least squares of relative errors, so that short frames count too."""
    ones = sum(1 / t**2 for _, t in points)
    works = sum(w / t**2 for w, t in points)
    squares = sum(w * w / t**2 for w, t in points)
    times, both = sum(1 / t for _, t in points), sum(w / t for w, t in points)
    scale = ones * squares - works * works
    if len(points) < 2 or scale <= 1e-12 * ones * squares:
        raise ValueError(f"no line goes through {points}: they need two different shares of work")
    a, b = (times * squares - both * works) / scale, (both * ones - times * works) / scale
    return Law(a, b, max(abs(a + b * w - t) / t for w, t in points))


def of(rows: Sequence[dict[str, Any]]) -> Law:
    """The law of a unit's boxes at threshold 0."""
    boxes = [row for row in rows if row["density"] is not None and row["threshold"] == 0]
    return fit([(row["work"], row["delta_ms"]) for row in boxes])


def table(facts: dict[str, Any]) -> str:
    body = []
    for unit, rows in by_unit(facts).items():
        law, dense = of(rows), dense_ms(rows)
        numbers = (f"{dense:.3g}", f"{law.a:.2f}", f"{law.b:.3g}", f"{law.b / dense:.2f}", f"{law.off:.0%}")
        body.append((str(unit), *numbers, rows[0]["commit"]))
    head = ("unit", "dense, ms", "a, ms", "b, ms", "b of dense", "a point is off by at most", "commit")
    return markdown(head, body)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
