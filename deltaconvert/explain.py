"""explain: what a converted network is, node by node."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import fx

from deltaconvert.advice import way_out
from deltaconvert.lower import Program
from deltaconvert.nodes import densify, is_call, is_delta, path_of, sparsify
from deltaconvert.text import counted, label, size_text, table
from deltaconvert.thresholds import NARROW, WEIGHTED

if TYPE_CHECKING:
    from deltaconvert.watching.speed import Speed

LISTED = 4  # paths named with one way out
HEAD = ("node", "operator", "runs as", "work", "threshold", "state")


@dataclass(frozen=True)
class ExplainRow:
    """One node of the delta graph.

    kind: "delta", "dense", "sparsify" or "densify". share: of all multiply-accumulates of a frame.
    threshold: the largest change that is dropped here; None where nothing is compared.
    how: what else decides there: "weighted" by channels, "narrow" changes, the settings of the gate.
    inputs: the paths of the nodes that it reads, and the names of frames.
    shape: of its result; None if that is no tensor.
    way_out: what can be done about a dense one.
    outside: why it runs after the frame's CUDA graph and not in it, known after a frame; None if it runs in it.
    """

    path: str
    operator: str
    kind: str
    reason: str | None
    macs: int
    share: float
    threshold: float | None
    how: str
    state_bytes: int
    inputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    outside: str | None = None
    way_out: str | None = None

    @property
    def runs_as(self) -> str:
        """Its kind, and the reason if it is dense or runs outside the CUDA graph."""
        text = self.kind if self.reason is None else f"{self.kind}: {self.reason.splitlines()[0]}"
        return text if self.outside is None else f"{text}; after the CUDA graph: {self.outside}"


@dataclass(frozen=True)
class Explanation:
    """outputs: the paths of the nodes whose results the network returns. speed: what to expect, if it was measured.
    still: what a still frame skips of its CUDA graph, known after a frame."""

    rows: list[ExplainRow]
    outputs: tuple[str, ...]
    speed: Speed | None = None
    still: str | None = None

    @property
    def delta_share(self) -> float:
        """The share of all multiply-accumulates that delta nodes do."""
        total = sum(row.macs for row in self.rows)
        return sum(row.macs for row in self.rows if row.kind == "delta") / total if total else 0.0

    @property
    def islands(self) -> list[ExplainRow]:
        return [row for row in self.rows if row.kind == "dense"]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        return f"{table(HEAD, self.cells())}\n{self.conclusion}"

    def cells(self) -> list[tuple[str, ...]]:
        """A line of the table for each node, as HEAD names its columns."""
        return [
            (
                row.path,
                row.operator,
                row.runs_as,
                f"{row.share:.1%}" if row.macs else "",
                " ".join(["" if row.threshold is None else f"{row.threshold:.4g}", row.how]).strip(),
                size_text(row.state_bytes) if row.state_bytes else "",
            )
            for row in self.rows
        ]

    @property
    def conclusion(self) -> str:
        """The text below the table: the dense nodes with the way out, and the summary."""
        return "\n".join([*self._dense(), self.summary])

    @property
    def summary(self) -> str:
        """N of M nodes sparse, X % of the work; what still frames skip, and the expected speed."""
        delta, dense = sum(row.kind == "delta" for row in self.rows), len(self.islands)
        total, state = sum(row.macs for row in self.rows), sum(row.state_bytes for row in self.rows)
        text = (
            f"{delta} of {delta + dense} nodes sparse: delta nodes do {self.delta_share:.1%} of "
            f"{total / 1e9:.3g} GMAC, {counted(dense, 'node stays', 'nodes stay')} dense, state {size_text(state)}"
        )
        return "\n".join([text, *(str(more) for more in (self.still, self.speed) if more is not None)])

    @property
    def advice(self) -> list[tuple[float, list[ExplainRow], str]]:
        """Dense nodes grouped by their way out, each group with its share of the work, the largest first."""
        groups: dict[str, list[ExplainRow]] = {}
        for row in self.islands:
            groups.setdefault(row.way_out or "", []).append(row)
        found = [(sum(row.share for row in rows), rows, way) for way, rows in groups.items()]
        return sorted(found, key=lambda group: -group[0])

    def with_parts(self, parts: Mapping[str, Explanation]) -> Explanation:
        """Insert the rows of converted parts (path -> part) before the island that holds them, and take off their
        work."""
        rows = []
        total = sum(row.macs for row in self.rows) or 1
        for row in self.rows:
            inner = [r for path, part in parts.items() if path.startswith(f"{row.path}.") for r in part.rows]
            rows += [replace(r, share=r.macs / total) for r in inner]
            left = max(row.macs - sum(r.macs for r in inner), 0)
            rows.append(replace(row, macs=left, share=left / total))
        return replace(self, rows=rows)

    def _dense(self) -> list[str]:
        lines = ["", "What stays dense, and the way out:"] if self.islands else []
        for share, rows, way in self.advice:
            more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
            lines.append(f"  {share:.1%} of the work: {', '.join(row.path for row in rows[:LISTED])}{more}")
            lines += textwrap.wrap(way, 100, initial_indent="    -> ", subsequent_indent="       ")
        return [*lines, ""] if lines else []


def explain(program: Program) -> Explanation:
    """One row for each node, from the program's plan and from its backend."""
    nodes = list(program.plan.graph.graph.nodes)
    calls = [node for node in nodes if is_call(node)]
    total = sum(map(_macs, calls)) or 1
    before = _before_deltas(calls)
    rows = [_row(node, program, total, last=node not in before) for node in calls]
    (output,) = (node for node in nodes if node.op == "output")
    return Explanation(rows, _sources_of(output), still=program.still)


def _row(node: fx.Node, program: Program, total: int, last: bool) -> ExplainRow:
    """total: the work of all nodes. last: no delta node follows."""
    kind, macs, edge = _kind(node), _macs(node), program.edges.get(node.name)
    reason = node.meta.get("why_dense", "unknown") if kind == "dense" else None
    return ExplainRow(
        path=path_of(node),
        operator=label(node),
        kind=kind,
        reason=reason,
        macs=macs,
        share=macs / total,
        threshold=node.meta.get("threshold"),
        how=_how(node),
        state_bytes=0 if edge is None else edge.state_bytes(),
        inputs=_sources_of(node),
        shape=node.meta.get("shape"),
        outside=program.outside.get(node.name),
        way_out=None if reason is None else way_out(reason, macs / total, last),
    )


def _how(node: fx.Node) -> str:
    words = [word for word, key in ((WEIGHTED, "shares"), (NARROW, "narrow")) if key in node.meta]
    return ", ".join([*words, *([str(node.meta["gate"])] if "gate" in node.meta else [])])


def _kind(node: fx.Node) -> str:
    if node.target in (sparsify, densify):
        return "sparsify" if node.target is sparsify else "densify"
    return "delta" if is_delta(node) else "dense"


def _macs(node: fx.Node) -> int:
    return 0 if node.target in (sparsify, densify) else node.meta.get("macs", 0)


def _before_deltas(calls: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that a delta node follows."""
    before: set[fx.Node] = set()
    for node in reversed(calls):
        if any(user in before or is_delta(user) for user in node.users):
            before.add(node)
    return before


def _sources_of(node: fx.Node) -> tuple[str, ...]:
    """The paths of what a node reads, without weights. Frames are marked: a frame's sparsify has the same path."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return tuple(
        f"frame {path_of(source)}" if source.op == "placeholder" else path_of(source) for source in sources
    )
