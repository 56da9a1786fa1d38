"""The parts of a page: line charts as SVG, shares as colours, pictures as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.watching.measure import quantile

WIDTH, HEIGHT = 1000, 150  # of a chart, in its own units
OUTLIER = 3.0  # times what 95 % of the values stay below: more flattens the rest of a chart
LARGEST = 640  # pixels, the longer side of a picture in the page
ORANGE = (200.0, 80.0, 10.0)


def chart(
    title: str, lines: Mapping[str, tuple[Sequence[float], str]], unit: str, across: str = "frame"
) -> dict[str, Any]:
    """lines: values and colour by name. across: what a value is of. A few values far above the rest, such as the first
    frame of a program that is compiled as it goes, are cut off at the top, and `beyond` says so."""
    every = [value for values, _ in lines.values() for value in values]
    highest = max(every)
    top = max((value for value in every if math.isfinite(value)), default=0.0)
    usual = quantile(every, 0.95)
    if top > OUTLIER * usual > 0:
        top = OUTLIER / 2 * usual
    count = sum(value > top for value in every)
    drawn = [
        {"name": name, "colour": colour, "points": _points(values, top or 1.0)}
        for name, (values, colour) in lines.items()
    ]
    return {
        "title": title,
        "top": unit.format(top or 1.0),
        "first": f"{across} 1",
        "last": f"{across} {max(len(values) for values, _ in lines.values())}",
        "beyond": f"cut off: {count}, up to {unit.format(highest)}" if count else "",
        "lines": drawn,
    }


def _points(values: Sequence[float], top: float) -> str:
    step = WIDTH / max(1, len(values) - 1)
    heights = (HEIGHT + 10 - HEIGHT * min(value, top) / top for value in values)
    return " ".join(f"{place * step:.1f},{height:.1f}" for place, height in enumerate(heights))


def shaded(shares: Tensor) -> Tensor:
    """Shares (H, W) as uint8 (H, W, 3): white to orange. Their roots, so that a few percent are seen."""
    full = torch.tensor(ORANGE)
    return (255 + shares.clamp(0, 1).sqrt().unsqueeze(2) * (full - 255)).round().to(torch.uint8)


def ramp() -> Tensor:
    """(1, 101): the shares 0 to 1, for a legend of the colours."""
    return torch.linspace(0, 1, 101)[None]


def picture(image: Tensor, kind: str = "JPEG") -> str:
    """uint8 (H, W, 3) as a data URL."""
    from PIL import Image

    drawn, out = Image.fromarray(image.cpu().numpy()), io.BytesIO()
    if kind == "JPEG":
        drawn.thumbnail((LARGEST, LARGEST))
    drawn.save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
