"""explain() as one self-contained page: what runs as deltas, what does not and why, what to expect."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from deltaconvert.drawing import dot
from deltaconvert.explain import Explanation
from deltaconvert.text import size_text

TEMPLATE = Path(__file__).with_name("explain_page.html")


def write(explanation: Explanation, out: str | Path, *, title: str = "") -> None:
    """Write the page to `out`. title: of the network."""
    Path(out).write_text(html(explanation, title=title), encoding="utf-8")


def html(explanation: Explanation, *, title: str = "") -> str:
    """The page. The graph is on it where Graphviz is installed."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    found, rows = explanation, explanation.rows
    return template.render(
        title=title or "a network",
        found=found,
        delta=sum(row.kind == "delta" for row in rows),
        gmac=sum(row.macs for row in rows) / 1e9,
        state=size_text(sum(row.state_bytes for row in rows)),
        dense_ms=median(row.dense_ms for row in found.speed.rows) if found.speed else None,
        graph=dot.svg(explanation),
        size_text=size_text,
    )
