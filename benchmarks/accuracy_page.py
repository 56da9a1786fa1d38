"""Draws what accuracy.py or accuracy_clock.py wrote, as curves and as a table, against work or against time.

python benchmarks/accuracy_page.py FOLDER [--svg docs/accuracy.svg]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, Any]
SHOWN = ("pets", "highway", "juggle", "road", "bottle", "upscale", "denoise")
LOSES_MORE, NOT_PLAYED = "loses more", "not played"
NOT_TIMED, NOT_QUICKER = "not timed", "not quicker"
STYLES = {  # way: colour, marker, name
    "ours": ("#d95f02", "o", "calibrate"),
    "paper": ("#7b6ca8", "s", "paper's procedure"),
    "one threshold": ("#4f8f6b", "^", "one threshold"),
    "lower resolution": ("#999999", "v", "lower resolution"),
    "skipped frames": ("#bbbbbb", "x", "skipped frames"),
    "frame gate": ("#555555", "+", "whole-frame gate"),
}
TIMED = {"by time": ("#c51b7d", "D", "calibrate, by time"), **STYLES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    tasks = tasks_of(options.folder)
    if any("ms" in row for rows in tasks.values() for row in rows):
        print(time_table(tasks))
        axis = Axis(
            "time, of the best dense network's", lambda row: row["ms"] / row["dense_ms"], TIMED, (0.02, 3)
        )
    else:
        print(table(tasks))
        print(side_by_side(tasks))
        print(plain(tasks))
        axis = WORK
    if options.svg:
        draw(tasks, options.svg, axis)


def tasks_of(folder: Path) -> dict[str, list[Row]]:
    """The rows of each task that was played."""
    files = {name: folder / f"{name}.json" for name in SHOWN}
    return {name: json.loads(file.read_text())["rows"] for name, file in files.items() if file.exists()}


def least(rows: Sequence[Row], way: str, times: float = 1.0, loss_of: str = "loss") -> float:
    """The least work of a way at `times` the accepted loss, where its curve crosses that loss.

    The score of a few hundred frames is noisy: average precision jumps by 0.01. So the loss is made to rise as work
    falls (isotonic regression), and a point that is better than its neighbours by chance is averaged with them.
    """
    curves = curves_of(rows, way)
    if not curves:
        return math.nan  # it was not played
    best = 1.0
    for curve in curves:
        work, loss = 1.0, 0.0
        for row, level in zip(curve, rising([row[loss_of] for row in curve]), strict=True):
            accepted = times * row["accepted"]
            if level > accepted:
                # These can have any strength between two points.
                if way in ("ours", "paper", "one threshold"):
                    work += (accepted - loss) / (level - loss) * (row["work"] - work)
                break
            work, loss = row["work"], level
        best = min(best, work)
    return best


def soonest(rows: Sequence[Row], way: str) -> float:
    """The least time of a way at the accepted loss, in milliseconds: of points that were timed, none between them.
    Infinite where all lose more."""
    curves = curves_of(rows, way)
    if not curves:
        return math.nan
    within = [math.inf]
    for curve in curves:
        levels = rising([row["loss"] for row in curve])
        within += [row["ms"] for row, level in zip(curve, levels, strict=True) if level <= row["accepted"]]
    return min(within)


def curves_of(rows: Sequence[Row], way: str) -> list[list[Row]]:
    """Each from much work to little."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if way_of(row) == way:
            curves.setdefault(row["way"], []).append(row)
    return [sorted(curve, key=lambda row: -row["work"]) for curve in curves.values()]


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (least squares: neighbours that fall are averaged)."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [mean(group) for group in groups for _ in group]


def way_of(row: Row) -> str:
    """The name without the budget: "ours 0.3" becomes "ours"."""
    return next((way for way in TIMED if row["way"].startswith(way)), row["way"])


def side_by_side(tasks: dict[str, list[Row]]) -> str:
    """The least work of ours and of the paper's procedure at once, twice and four times the accepted loss."""
    lines = [["task", "accepted loss", "twice", "four times"], ["---"] * 4]
    for task, rows in tasks.items():
        pairs = [[least(rows, way, times) for way in ("ours", "paper")] for times in (1, 2, 4)]
        lines.append(
            [
                task,
                *(
                    " : ".join(f"{work:.2f}".lstrip("0").replace("nan", NOT_PLAYED) for work in pair)
                    for pair in pairs
                ),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(tasks: dict[str, list[Row]]) -> str:
    """The least work at the accepted loss of the usual score, for tasks with a stricter score of their own."""
    lines = [["task", "calibrate", "paper's procedure", "calibrate / paper's"], ["---"] * 4]
    for task, rows in tasks.items():
        if any(row["plain_loss"] != row["loss"] for row in rows):
            ours, paper = (least(rows, way, loss_of="plain_loss") for way in ("ours", "paper"))
            lines.append([task, f"{ours:.3f}", f"{paper:.3f}", f"{ours / paper:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(tasks: dict[str, list[Row]]) -> str:
    """The least work at the accepted loss, by way; the last column is ours against the paper's."""
    head = ("task", "dense score", *(name for _, _, name in STYLES.values()), "calibrate / paper's")
    lines = [head, ["---"] * len(head)]
    for task, rows in tasks.items():
        works = {way: least(rows, way) for way in STYLES}
        dense = next(row for row in rows if row["way"] == "dense")
        ratio = works["ours"] / works["paper"]
        cells = [least_told(work) for work in works.values()]
        told = f"{ratio:.2f}" if math.isfinite(ratio) else NOT_PLAYED
        lines.append((f"{task}: {dense['truth']}", f"{dense['score']:.4g}", *cells, told))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def least_told(work: float) -> str:
    """The least work of a way, or words if it always loses too much or was not played."""
    if math.isnan(work):
        return NOT_PLAYED
    return f"{work:.3f}".lstrip("0") if work < 0.999 else LOSES_MORE


def time_table(tasks: dict[str, list[Row]]) -> str:
    """Milliseconds at the accepted loss, by way; the last column is dense's time over that of the fastest way."""
    head = ("task", "dense", *(name for _, _, name in TIMED.values()), "times as fast")
    lines = [head, ["---"] * len(head)]
    for task, rows in tasks.items():
        dense, times = rows[0]["dense_ms"], [soonest(rows, way) for way in TIMED]
        cells = (time_told(ms, dense) for ms in times)
        best = min(ms for ms in (dense, *times) if not math.isnan(ms))
        lines.append((task, f"{dense:.3g} ms", *cells, f"{dense / best:.1f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def time_told(ms: float, dense: float) -> str:
    """The milliseconds of a way, or words if it was not timed, always loses too much, or is not quicker than dense."""
    if math.isnan(ms):
        return NOT_TIMED
    if math.isinf(ms):
        return LOSES_MORE
    return f"{ms:.3g}" if ms < 0.999 * dense else NOT_QUICKER


@dataclass(frozen=True)
class Axis:
    """What the loss is drawn against: its key in a row, its label and its limits."""

    name: str
    share: Callable[[Row], float]
    styles: Mapping[str, tuple[str, str, str]]
    span: tuple[float, float]


WORK = Axis("multiply-accumulates", lambda row: row["work"], STYLES, (0.02, 1.05))


def draw(tasks: dict[str, list[Row]], out: Path, axis: Axis = WORK) -> None:
    """Loss against work or time, one panel for each task; a dotted line is the accepted loss."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "deltaconvert", "svg.fonttype": "none"}):
        columns = 4
        figure = Figure(figsize=(3.1 * columns, 2.7 * -(-len(tasks) // columns)), layout="constrained")
        grid = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).flatten()
        for axes in grid[len(tasks) :]:
            axes.set_visible(False)
        for axes, (task, rows) in zip(grid, tasks.items(), strict=False):
            _panel(axes, task, rows, axis)
        handles, labels = grid[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(
            unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), frameon=False
        )
        figure.savefig(out, metadata={"Date": None})


def _panel(axes: Any, task: str, rows: Sequence[Row], axis: Axis) -> None:
    accepted = rows[0]["accepted"]
    for way, (colour, marker, name) in axis.styles.items():
        for curve in dict.fromkeys(row["way"] for row in rows if way_of(row) == way):
            points = sorted((axis.share(row), row["loss"] / accepted) for row in rows if row["way"] == curve)
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=3, linewidth=1, label=name
            )
    axes.axhline(1, color="#000000", linestyle=":", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-2, 60)
    axes.set_xscale("log")
    axes.set_xlim(*axis.span)
    axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["2%", "5%", "10%", "20%", "50%", "100%"])
    axes.set_title(task, fontsize=10)
    axes.set_xlabel(axis.name)
    axes.set_ylabel(f"loss, in {accepted:g}" + (" dB" if accepted == 0.1 else ""))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
