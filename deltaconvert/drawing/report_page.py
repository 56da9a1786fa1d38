"""A run on a video as one self-contained HTML page: what changed where, what it cost, how far it is from dense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import deltaconvert
from deltaconvert.drawing.charts import chart, picture, ramp, shaded
from deltaconvert.drawing.overlay import heatmap, overlay
from deltaconvert.errors import DeltaConvertError
from deltaconvert.model import DeltaModel
from deltaconvert.stats import LayerStats, nonfinite_text
from deltaconvert.watching.measure import BASELINE, Difference, environment
from deltaconvert.watching.watch import Seen

TEMPLATE = Path(__file__).with_name("report_page.html")
DELTA, DENSE = "#c8500a", "#1f4e9c"
NAMED = 14  # rows of the picture of all layers
LINE = 16  # pixels of a name beside it


class Frame(NamedTuple):
    """What a frame came to: shares of the pixels and of the work, milliseconds; beside a dense network also those of
    that, and the relative L2 to it."""

    density: float
    work: float
    ours: float
    dense: float | None
    error: float | None


@dataclass
class Page:
    """Collects a run, frame by frame; `write` makes the page. Stills: the calmest, a middling, the busiest frame.

    layers: of each frame. pictures: density, number, frame and mask of the stills.
    often: in how many frames each pixel changed, H W.
    before: full frames of each gated input up to the first frame, which counts as one: every pixel of it is new.
    """

    model: DeltaModel
    title: str
    frames: list[Frame] = field(default_factory=list)
    layers: list[list[LayerStats]] = field(default_factory=list)
    pictures: list[tuple[float, int, Tensor, Tensor]] = field(default_factory=list)
    often: Tensor | None = None
    before: dict[str, int] = field(default_factory=dict)

    def follow(self, run: Iterable[Seen]) -> None:
        require()
        for number, seen in enumerate(run):
            error = None
            if seen.dense is not None:
                difference = Difference()
                difference.add(seen.outputs, seen.dense)
                error = difference.relative
            self.frames.append(Frame(seen.density, seen.work, seen.delta_ms, seen.dense_ms, error))
            self.layers.append(self.model.stats().layers)
            if number == 0:
                self.often = torch.zeros(seen.mask.shape)
                self._first = seen.frame
                self.before = {path: counts["cuts"] for path, counts in self.model.stats().gates.items()}
                continue
            assert self.often is not None
            self.often += seen.mask
            self._keep(number, seen)

    def write(self, path: str | Path) -> None:
        """DeltaConvertError if the run had fewer than two frames: the first one is always full."""
        from jinja2 import Environment

        if len(self.frames) < 2 or self.often is None:
            raise DeltaConvertError(f"{path}: a report needs at least 2 frames, the first one is always full")
        template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
        Path(path).write_text(template.render(**self._content()), encoding="utf-8")

    def _keep(self, number: int, seen: Seen) -> None:
        """Keep the calmest frame, the busiest, and the one closest to the middle of both."""
        self.pictures.append((seen.density, number, seen.frame, seen.mask))
        if len(self.pictures) > 3:
            self.pictures.sort(key=lambda picture: picture[:2])
            low, high = self.pictures[0][0], self.pictures[-1][0]
            middle = min(self.pictures[1:-1], key=lambda picture: abs(picture[0] - (low + high) / 2))
            self.pictures = [self.pictures[0], middle, self.pictures[-1]]

    def _content(self) -> dict[str, Any]:
        assert self.often is not None
        counted = self.frames[1:]
        strip = torch.tensor([[layer.density for layer in layers] for layers in self.layers[1:]]).T
        names, stats = self._strip_names(), self.model.stats()
        top = float(self.often.max())
        return {
            "title": self.title,
            "facts": self._facts(counted),
            "charts": self._charts(counted),
            "last": len(counted),
            "strip": picture(shaded(strip), "PNG"),
            "strip_bar": picture(shaded(ramp()), "PNG"),
            "strip_height": max(LINE * len(names), min(600, 5 * strip.shape[0])),
            "strip_names": names,
            "heat": picture(heatmap(self._first, self.often / max(1.0, top))),
            "heat_bar": picture(heatmap(torch.zeros(1, 101, 3, dtype=torch.uint8), ramp()), "PNG"),
            "heat_top": f"{top / len(counted):.0%} of the frames",
            "stills": [
                {
                    "number": number,
                    "plain": picture(frame),
                    "marked": picture(overlay(frame, mask)),
                    "said": f"{density:.1%} of its pixels changed",
                }
                for density, number, frame, mask in sorted(self.pictures, key=lambda picture: picture[1])
            ],
            "gate": str(self.model.gate),
            "gates": {
                path: {**counts, "cuts": counts["cuts"] - self.before[path]}
                for path, counts in stats.gates.items()
            },
            "nonfinite": nonfinite_text(stats.nonfinite),
            "rows": self._rows(),
            "said": self._said(counted),
        }

    def _said(self, frames: Sequence[Frame]) -> str:
        """When and where it ran, and what it was compared with."""
        here, device = environment(), self.model.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else here["processor"]
        said = (
            f"deltaconvert {deltaconvert.__version__}, backend {self.model.backend}, {where}, "
            f"{here['threads']} threads, torch {here['torch']}, {here['date']}. The first frame, which is always full, "
            "is left out everywhere"
        )
        beside = frames[0].dense is not None
        return f"{said}; dense is {BASELINE}." if beside else f"{said}."

    def _strip_names(self) -> list[dict[str, Any]]:
        """Some of the picture's rows, evenly from first to last: how far down, in percent, and the node's path."""
        paths = [layer.path for layer in self.layers[0]]
        some = min(NAMED, len(paths))
        places = sorted({round(row * (len(paths) - 1) / max(some - 1, 1)) for row in range(some)})
        return [{"top": 100 * (place + 0.5) / len(paths), "path": paths[place]} for place in places]

    def _facts(self, frames: Sequence[Frame]) -> list[tuple[str, str]]:
        ours = median([frame.ours for frame in frames])
        dense = [frame.dense for frame in frames if frame.dense is not None]
        errors = [frame.error for frame in frames if frame.error is not None]
        facts = [
            ("frames", str(len(self.frames))),
            ("of the multiply-accumulates", f"{fmean([frame.work for frame in frames]):.1%}"),
            ("of the pixels changed", f"{fmean([frame.density for frame in frames]):.1%}"),
            ("ms a frame, median", f"{ours:.1f}"),
        ]
        if dense:
            facts += [
                ("ms dense", f"{median(dense):.1f}"),
                ("times as fast", f"{median(dense) / ours:.2f}"),
                ("relative L2, mean", f"{fmean(errors):.3g}"),
                ("at most, in one frame", f"{max(errors):.3g}"),
            ]
        observed = self.model.stats().observed
        if observed is not None and observed.looks:
            facts.append(("relative L2, by the monitor", f"{observed.relative:.3g}"))
        return facts

    def _charts(self, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        densities, works = [frame.density for frame in frames], [frame.work for frame in frames]
        times = {"delta": ([frame.ours for frame in frames], DELTA)}
        dense = [frame.dense for frame in frames if frame.dense is not None]
        if dense:
            times["dense"] = (dense, DENSE)
        charts = [
            chart(
                "Changed pixels and work",
                {"changed pixels": (densities, DELTA), "work": (works, DENSE)},
                "{:.1%}",
            ),
            chart("Milliseconds a frame", times, "{:.1f} ms"),
        ]
        observed = self.model.stats().observed
        errors = [frame.error for frame in frames if frame.error is not None]
        if errors:
            charts.append(chart("Difference to dense, relative L2", {"error": (errors, DELTA)}, "{:.3g}"))
        elif observed is not None and len(observed.each) > 1:
            seen = {"error": (observed.each, DELTA)}
            charts.append(chart("Error that the monitor saw, relative L2", seen, "{:.3g}", "look"))
        return charts

    def _rows(self) -> list[dict[str, str]]:
        """A row for each node, over all frames but the first."""
        explained = {row.path: row for row in self.model.explain().rows if row.kind != "densify"}
        rows = []
        for seen in zip(*self.layers[1:], strict=True):
            layer, row = seen[0], explained.get(seen[0].path)
            done = sum(each.macs_done for each in seen)
            dense = sum(each.macs_done + each.macs_skipped for each in seen)
            share = row.share if row is not None and row.macs else 0.0
            how = row.how if row is not None and row.kind != "sparsify" else ""
            threshold = "" if row is None or row.threshold is None else f"{row.threshold:.4g} {how}".strip()
            rows.append(
                {
                    "path": layer.path,
                    "operator": layer.operator,
                    "threshold": threshold,
                    "changed": f"{fmean(each.density for each in seen):.1%}",
                    "computed": f"{done / dense:.1%}" if dense else "",
                    "share": f"{share:.1%}" if share else "",
                    "left": f"{done / dense * share:.2%}" if dense and share else "",
                    "bar": f"{100 * done / max(dense, 1):.0f}%",
                }
            )
        return rows


def require() -> None:
    """DeltaConvertError if a package that makes pages is missing: better said before the run than after it."""
    try:
        import jinja2  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise DeltaConvertError(
            'a report needs Jinja and Pillow: pip install "deltaconvert[report]"'
        ) from error
