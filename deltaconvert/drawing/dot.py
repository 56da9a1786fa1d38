"""A picture of the delta graph in Graphviz's language; other formats go through Graphviz itself."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from html import escape
from pathlib import Path

from deltaconvert.errors import DeltaConvertError
from deltaconvert.explain import ExplainRow, Explanation

DELTA, DENSE, CONVERSION = "#c8500a", "#1f4e9c", "#555555"
SHADES = ("#ffffff", "#fdeee2", "#fbd9be", "#f7b98c", "#f29a5c")
FROM = (0.0, 0.001, 0.02, 0.05, 0.1)  # share of the work from which a node has the shade
HEAD = """
  graph [fontname="Helvetica", fontsize=11, nodesep=0.3, ranksep=0.3, labelloc=t, labeljust=l]
  node [fontname="Helvetica", fontsize=10, shape=box, style="filled,rounded", fillcolor=white, margin="0.1,0.05"]
  edge [arrowsize=0.7]"""
EDGES = {
    "delta": f'[color="{DELTA}", penwidth=2]',
    "dense": f'[color="{DENSE}", penwidth=1.4, style=dashed]',
}


PLAIN = (".dot", ".gv")


def check(out: str | Path) -> None:
    """DeltaConvertError if there is no Graphviz for a picture: better said before a network is converted."""
    out = Path(out)
    if out.suffix not in PLAIN and shutil.which("dot") is None:
        raise DeltaConvertError(
            f"{out} needs Graphviz (apt install graphviz, brew install graphviz): install it, or write "
            f"{out.with_suffix('.dot')}, which needs nothing"
        )


def write(explanation: Explanation, out: str | Path) -> None:
    """The graph as a file: .dot as it is; .svg, .png or .pdf through Graphviz."""
    out = Path(out)
    check(out)
    text = dot(explanation)
    if out.suffix in PLAIN:
        out.write_text(text)
        return
    command = ["dot", f"-T{out.suffix[1:]}", "-o", str(out)]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise DeltaConvertError(f"Graphviz cannot write {out}: {done.stderr.strip()}")


def svg(explanation: Explanation) -> str | None:
    """The graph as an SVG element; None without Graphviz."""
    program = shutil.which("dot")
    if program is None:
        return None
    done = subprocess.run([program, "-Tsvg"], input=dot(explanation), capture_output=True, text=True)
    return done.stdout[done.stdout.find("<svg") :] if done.returncode == 0 else None


def dot(explanation: Explanation) -> str:
    """Delta nodes are orange, the darker the more work they do; dense islands are blue and say why; the conversions
    between them grey. A thick orange edge carries a map and its mask, a dashed blue one a dense tensor.
    """
    deltas = {row.path for row in explanation.rows if row.kind in ("delta", "sparsify")}
    edges = [(source, row.path) for row in explanation.rows for source in row.inputs]
    edges += [(source, "output") for source in explanation.outputs]
    known = {row.path for row in explanation.rows}
    ends = dict.fromkeys([source for source, _ in edges if source not in known] + ["output"])
    lines = ["digraph network {" + HEAD, f"  label=<{_title(explanation)}>"]
    lines += [f"  {_quoted(end)} [shape=plaintext, style=solid]" for end in ends]
    lines += [f"  {_quoted(row.path)} {_node(row)}" for row in explanation.rows]
    lines += [
        f"  {_quoted(source)} -> {_quoted(target)} {EDGES['delta' if source in deltas else 'dense']}"
        for source, target in edges
    ]
    return "\n".join([*lines, "}", ""])


def _node(row: ExplainRow) -> str:
    size = "x".join(map(str, row.shape)) if row.shape else ""
    if row.kind in ("sparsify", "densify"):
        kept = "" if not row.threshold else f", threshold {row.threshold:.3g}"
        text, style = f"{row.kind}{kept}", f'shape=ellipse, color="{CONVERSION}", fillcolor="#e8e8e8"'
        return f"[label=<{escape(text)}>, {style}]"
    facts = [size, *([f"{row.share:.1%} of the work"] if row.macs else [])]
    facts += [f"threshold {row.threshold:.3g}"] if row.threshold else []
    lines = [f"<b>{escape(row.path)}</b>", escape(row.operator), escape(" · ".join(filter(None, facts)))]
    if row.kind == "dense":
        lines += [f"<i>{escape(part)}</i>" for part in textwrap.wrap(row.runs_as, 44)]
        style = f'color="{DENSE}", penwidth=3, fillcolor="#cfe0fb", style="filled"'
    else:
        shade = SHADES[sum(row.share >= share for share in FROM) - 1]
        style = f'color="{DELTA}", fillcolor="{shade}"'
    return f"[label=<{'<br/>'.join(filter(None, lines))}>, {style}]"


def _title(explanation: Explanation) -> str:
    rows = explanation.rows
    count = sum(row.kind == "delta" for row in rows)
    keys = (
        (
            DELTA,
            f"orange: delta nodes ({count}) with {explanation.delta_share:.1%} of the work, darker is more",
        ),
        (DENSE, f"blue: dense nodes ({len(explanation.islands)}), with the reason; dashed: dense tensors"),
        (CONVERSION, "grey: sparsify (dense to delta) and densify (delta to dense)"),
    )
    return (
        "<br align='left'/>".join(f'<font color="{c}">{escape(t)}</font>' for c, t in keys)
        + "<br align='left'/>"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
