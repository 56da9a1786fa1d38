"""Pictures of measured times; the only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deltaconvert.errors import DeltaConvertError

COLOURS = ("#555555", "#999999", "#7b6ca8", "#4f8f6b")  # of dense engines
DELTA, BOUND = "#d95f02", "#f2b58a"


@dataclass(frozen=True)
class Panel:
    """One network. densities: shares 0..1 of the frame that move. For each of them the milliseconds a frame of the
    converted network and of each dense engine, and the share of the dense multiply-accumulates that was done."""

    title: str
    densities: Sequence[float]
    delta: Sequence[float]
    dense: Mapping[str, Sequence[float]]
    works: Sequence[float]


def check(out: str | Path) -> None:
    """DeltaConvertError if no picture can be written to `out`: better said before a measurement than after it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DeltaConvertError(
            'pictures of times need matplotlib: pip install "deltaconvert[plot]"'
        ) from error
    endings = Figure().canvas.get_supported_filetypes()
    if Path(out).suffix[1:] not in endings:
        raise DeltaConvertError(f"{out} ends in no picture format: take one of {', '.join(sorted(endings))}")


def draw(panels: Sequence[Panel], out: str | Path) -> None:
    """Plot time against density, with the panels side by side; the ending of `out` is the format: .svg, .png, .pdf."""
    check(out)
    import matplotlib
    from matplotlib.figure import Figure

    # So that the same numbers give the same file: a fixed salt for names, and no date.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "deltaconvert", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.6 * len(panels) + 0.4, 3.3), layout="constrained")
        engines = sorted({name for panel in panels for name in panel.dense})  # not every run has all of them
        colours = dict(zip(engines, COLOURS * len(engines), strict=False))
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(axes, panel, colours)
        figure.axes[0].set_ylabel("milliseconds a frame")
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles=lines.values(), loc="outside lower center", ncols=len(lines), frameon=False)
        figure.savefig(out, dpi=150, metadata={"Date": None} if Path(out).suffix == ".svg" else None)


def _panel(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    # By the square root, the side of the moving box: small densities are what matters, and stay apart.
    axes.set_xscale("function", functions=(lambda x: x**0.5, lambda x: x**2))
    for name, times in panel.dense.items():
        axes.plot(panel.densities, times, color=colours[name], linewidth=1.2, label=name)
    best = min(median(times) for times in panel.dense.values())
    bound = [best * work for work in panel.works]
    axes.plot(panel.densities, bound, color=BOUND, linestyle="--", label="best dense x work left")
    axes.plot(panel.densities, panel.delta, color=DELTA, marker="o", markersize=4, label="delta")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("moving part of the frame")
    axes.set_xticks(panel.densities, [f"{density:.3g}" for density in (100 * d for d in panel.densities)])
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}%")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
