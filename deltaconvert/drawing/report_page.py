"""A run on a video as one self-contained HTML page: what changed where, what it cost, how far from dense it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

import deltaconvert
from deltaconvert.drawing.overlay import heatmap, overlay
from deltaconvert.errors import DeltaConvertError
from deltaconvert.model import DeltaModel
from deltaconvert.watching.measure import Difference
from deltaconvert.watching.watch import Seen

TEMPLATE = Path(__file__).with_name("report_page.html")
DELTA, DENSE = "#c8500a", "#1f4e9c"
WIDTH, HEIGHT = 1000, 150  # of a chart, in its own units
LARGEST = 640  # pixels, the longer side of a picture in the page


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

    layers: of each frame the density of each layer. pictures: density, number, frame and mask of the stills.
    often: in how many frames each pixel changed, H W.
    """

    model: DeltaModel
    title: str
    frames: list[Frame] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)
    pictures: list[tuple[float, int, Tensor, Tensor]] = field(default_factory=list)
    often: Tensor | None = None

    def follow(self, run: Iterable[Seen]) -> None:
        require()
        for number, seen in enumerate(run):
            error = None
            if seen.dense is not None:
                difference = Difference()
                difference.add(seen.outputs, seen.dense)
                error = difference.relative
            self.frames.append(Frame(seen.density, seen.work, seen.delta_ms, seen.dense_ms, error))
            self.layers.append([layer.density for layer in self.model.stats().layers])
            if number == 0:
                self.often = torch.zeros(seen.mask.shape)
                self._first = seen.frame
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
        """The calmest, the busiest, and between them the one closest to halfway."""
        self.pictures.append((seen.density, number, seen.frame, seen.mask))
        if len(self.pictures) > 3:
            self.pictures.sort(key=lambda picture: picture[:2])
            low, high = self.pictures[0][0], self.pictures[-1][0]
            middle = min(self.pictures[1:-1], key=lambda picture: abs(picture[0] - (low + high) / 2))
            self.pictures = [self.pictures[0], middle, self.pictures[-1]]

    def _content(self) -> dict[str, Any]:
        assert self.often is not None
        counted = self.frames[1:]
        strip = torch.tensor(self.layers[1:]).T  # nodes, frames
        top = float(self.often.max())
        return {
            "title": self.title,
            "facts": self._facts(counted),
            "charts": self._charts(counted),
            "strip": _picture(_shaded(strip.sqrt()), "PNG"),
            "strip_height": max(60, min(600, 5 * strip.shape[0])),
            "heat": _picture(heatmap(self._first, self.often / max(1.0, top))),
            "heat_top": f" (at most in {top / len(counted):.0%} of the frames)",
            "stills": [
                {
                    "number": number,
                    "plain": _picture(frame),
                    "marked": _picture(overlay(frame, mask)),
                    "said": f"{density:.1%} of its pixels changed",
                }
                for density, number, frame, mask in sorted(self.pictures, key=lambda picture: picture[1])
            ],
            "gate": str(self.model.gate),
            "rows": self._rows(),
            "said": f"deltaconvert {deltaconvert.__version__}, {self.model.backend}; the first frame is left out",
        }

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
                ("relative L2, at most", f"{max(errors):.3g}"),
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
            _chart(
                "Changed pixels and work",
                {"changed pixels": (densities, DELTA), "work": (works, DENSE)},
                "{:.1%}",
            ),
            _chart("Milliseconds", times, "{:.1f} ms"),
        ]
        observed = self.model.stats().observed
        errors = [frame.error for frame in frames if frame.error is not None]
        if errors:
            charts.append(_chart("Difference to dense, relative L2", {"error": (errors, DELTA)}, "{:.3g}"))
        elif observed is not None and len(observed.each) > 1:
            seen = {"error": (observed.each, DELTA)}
            charts.append(_chart("Error that the monitor saw, relative L2", seen, "{:.3g}"))
        return charts

    def _rows(self) -> list[dict[str, str]]:
        explained = {row.path: row for row in self.model.explain().rows if row.kind in ("sparsify", "delta")}
        rows = []
        for layer in self.model.stats().layers:
            row = explained.get(layer.path)
            done, all_of_it = layer.total_macs_done, layer.total_macs_done + layer.total_macs_skipped
            left = done / all_of_it if all_of_it else 0.0
            threshold = "" if row is None or row.threshold is None else f"{row.threshold:.4g}"
            rows.append(
                {
                    "path": layer.path,
                    "operator": layer.operator,
                    "threshold": threshold
                    + (f" {row.how}" if row is not None and row.how and row.kind != "sparsify" else ""),
                    "changed": f"{layer.mean_density:.1%}",
                    "computed": f"{left:.1%}" if all_of_it else "",
                    "share": f"{row.share:.1%}" if row is not None and row.macs else "",
                    "left": f"{left * row.share:.2%}" if row is not None and row.macs else "",
                    "bar": f"{100 * left:.0f}%" if all_of_it else "0%",
                }
            )
        return rows


def require() -> None:
    """DeltaConvertError where what a page is made with is missing: better said before the run than after it."""
    try:
        import jinja2  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise DeltaConvertError(
            'a report needs Jinja and Pillow: pip install "deltaconvert[report]"'
        ) from error


def _chart(title: str, lines: Mapping[str, tuple[Sequence[float], str]], unit: str) -> dict[str, Any]:
    top = max(max(values) for values, _ in lines.values()) or 1.0

    def points(values: Sequence[float]) -> str:
        step = WIDTH / max(1, len(values) - 1)
        return " ".join(
            f"{place * step:.1f},{HEIGHT + 10 - HEIGHT * v / top:.1f}" for place, v in enumerate(values)
        )

    drawn = [
        {"name": name, "colour": colour, "points": points(values)} for name, (values, colour) in lines.items()
    ]
    return {"title": title, "top": unit.format(top), "lines": drawn}


def _shaded(shares: Tensor) -> Tensor:
    """Shares (H, W) as uint8 (H, W, 3): white to orange."""
    full = torch.tensor([200.0, 80.0, 10.0])
    return (255 + shares.clamp(0, 1).unsqueeze(2) * (full - 255)).round().to(torch.uint8)


def _picture(image: Tensor, kind: str = "JPEG") -> str:
    """uint8 (H, W, 3) as the address of a picture inside the page."""
    from PIL import Image

    picture, out = Image.fromarray(image.cpu().numpy()), io.BytesIO()
    if kind == "JPEG":
        picture.thumbnail((LARGEST, LARGEST))
    picture.save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
