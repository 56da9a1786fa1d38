"""What a converted network is (explain) and what it did (stats), as rows that print as tables and dump as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx

from deltaconvert.advice import way_out
from deltaconvert.check import densify, is_delta, operator_of, sparsify
from deltaconvert.lower import Program
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.paired import Paired

if TYPE_CHECKING:
    from deltaconvert.monitor import Observed
    from deltaconvert.speed import Speed

LISTED = 4  # paths named with one way out


@dataclass(frozen=True)
class ExplainRow:
    """One node of the delta graph.

    kind: "delta", "dense", "sparsify" or "densify". share: of all multiply-accumulates of a frame.
    threshold: the largest change that is dropped here; None where nothing is compared.
    how: what else decides there: "weighted" by channels, or the settings of the gate.
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
        """Its kind, and why it is no faster one."""
        text = self.kind if self.reason is None else f"{self.kind}: {self.reason.splitlines()[0]}"
        return text if self.outside is None else f"{text}; after the CUDA graph: {self.outside}"


@dataclass(frozen=True)
class Explanation:
    """outputs: the paths of the nodes whose results the network returns. speed: what to expect, if it was measured."""

    rows: list[ExplainRow]
    outputs: tuple[str, ...]
    speed: Speed | None = None

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
        head = ("node", "operator", "runs as", "work", "threshold", "state")
        body = [
            (
                row.path,
                row.operator,
                row.runs_as,
                f"{row.share:.1%}" if row.macs else "",
                "" if row.threshold is None else f"{row.threshold:.4g} {row.how}".rstrip(),
                size_text(row.state_bytes) if row.state_bytes else "",
            )
            for row in self.rows
        ]
        return "\n".join([table(head, body), *self._dense(), self.summary])

    @property
    def summary(self) -> str:
        """N of M nodes sparse, X % of the work; and the expected speed."""
        delta, dense = sum(row.kind == "delta" for row in self.rows), len(self.islands)
        total, state = sum(row.macs for row in self.rows), sum(row.state_bytes for row in self.rows)
        text = (
            f"{delta} of {delta + dense} nodes sparse: delta nodes do {self.delta_share:.1%} of "
            f"{total / 1e9:.3g} GMAC, {dense} nodes stay dense, state {size_text(state)}"
        )
        return text if self.speed is None else f"{text}\n{self.speed}"

    @property
    def advice(self) -> list[tuple[float, list[ExplainRow], str]]:
        """Dense nodes that have one way out together, with their share of the work; what does most comes first."""
        groups: dict[str, list[ExplainRow]] = {}
        for row in self.islands:
            groups.setdefault(row.way_out or "", []).append(row)
        found = [(sum(row.share for row in rows), rows, way) for way, rows in groups.items()]
        return sorted(found, key=lambda group: -group[0])

    def _dense(self) -> list[str]:
        lines = ["", "What stays dense, and the way out:"] if self.islands else []
        for share, rows, way in self.advice:
            more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
            lines.append(f"  {share:.1%} of the work: {', '.join(row.path for row in rows[:LISTED])}{more}")
            lines += textwrap.wrap(way, 100, initial_indent="    -> ", subsequent_indent="       ")
        return [*lines, ""] if lines else []


@dataclass(frozen=True)
class LayerStats:
    """One node over the frames so far. Pixels are those of all streams together.

    density: share of the node's pixels that changed; computed: share that was computed (candidates, and what a
    backend computes along with them); both of the last frame and, as mean_..., over all frames.
    macs_done and macs_skipped: multiply-accumulates of the last frame; total_... over all frames.
    """

    path: str
    operator: str
    density: float
    mean_density: float
    computed: float
    macs_done: int
    macs_skipped: int
    total_macs_done: int
    total_macs_skipped: int
    state_bytes: int


@dataclass(frozen=True)
class Stats:
    """gates: for each gated input, by path, "held": pixels with NaN or infinity that were kept out so far, "cuts": full
    frames after a cut so far, "waiting": tiles that wait for their turn now. observed: what a monitor saw, if one
    looks."""

    frames: int
    layers: list[LayerStats]
    gates: dict[str, dict[str, int]] = field(default_factory=dict)
    observed: Observed | None = None

    @property
    def macs_done(self) -> int:
        """Multiply-accumulates of the last frame."""
        return sum(layer.macs_done for layer in self.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of a dense frame."""
        return sum(layer.macs_done + layer.macs_skipped for layer in self.layers)

    @property
    def work(self) -> float:
        """Share of a dense frame's multiply-accumulates that the last frame did."""
        return self.macs_done / self.macs_dense if self.macs_dense else 0.0

    @property
    def mean_work(self) -> float:
        """The same over all frames."""
        done = sum(layer.total_macs_done for layer in self.layers)
        dense = done + sum(layer.total_macs_skipped for layer in self.layers)
        return done / dense if dense else 0.0

    @property
    def state_bytes(self) -> int:
        return sum(layer.state_bytes for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "work": self.work,
            "mean_work": self.mean_work,
            "state_bytes": self.state_bytes,
            "gates": self.gates,
            "observed": None if self.observed is None else self.observed.to_json(),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        head = ("node", "operator", "changed", "mean", "computed", "MMAC done", "skipped", "state")
        body = [
            (
                layer.path,
                layer.operator,
                f"{layer.density:.1%}",
                f"{layer.mean_density:.1%}",
                f"{layer.computed:.1%}",
                f"{layer.macs_done / 1e6:.4g}",
                f"{layer.macs_skipped / 1e6:.4g}",
                size_text(layer.state_bytes) if layer.state_bytes else "",
            )
            for layer in self.layers
        ]
        tail = (
            f"{self.frames} frames; the last did {self.work:.1%} of a dense frame's work, "
            f"the mean is {self.mean_work:.1%}; state {size_text(self.state_bytes)}"
        )
        for path, counts in self.gates.items():
            tail += f"\ngate of {path}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
        if self.observed is not None:
            tail += f"\n{self.observed}"
        return table(head, body) + "\n" + tail


@dataclass
class Tally:
    """Counts of the frames so far. They stay on the device until somebody asks."""

    frames: int = 0
    counted: Any = None  # int64 (2, edges, 2): of the last frame and of all, the pixels computed and changed
    ran: dict[str, int] = field(default_factory=dict)  # dense node name -> frames in which it ran

    def add(self, program: Program) -> None:
        self.frames += 1
        if program.edges:
            self.counted = program.count()
        for name, island in program.islands.items():
            self.ran[name] = self.ran.get(name, 0) + island.ran

    def stats(self, program: Program) -> Stats:
        layers, gates = [], {}
        none = [(0, 0)] * len(program.edges)
        last, total = (none, none) if self.counted is None else self.counted.tolist()
        counts = dict(zip(program.edges, zip(last, total, strict=True), strict=True))
        for node in program.plan.graph.graph.nodes:
            if node.name in program.edges:
                layers.append(self._delta(node, program.edges[node.name], *counts[node.name]))
                if "gate" in node.meta:
                    gates[node.meta.get("path", node.name)] = program.watches[node.name].report()
            elif node.meta.get("macs") and node.op in ("call_function", "call_method", "call_module"):
                layers.append(self._dense(node, program.islands[node.name].ran))
        return Stats(self.frames, layers, gates)

    def _delta(self, node: fx.Node, edge: Any, last: Sequence[int], total: Sequence[int]) -> LayerStats:
        shape, macs = node.meta["shape"], node.meta.get("macs", 0) if node.target is not sparsify else 0
        pixels = shape[0] * shape[2] * shape[3]
        (computed, changed), (all_computed, all_changed) = last, total
        frames = max(self.frames, 1)
        done, total_done = macs * computed // pixels, macs * all_computed // pixels
        ran = min(self.frames, 1)
        return LayerStats(
            path=node.meta.get("path", node.name),
            operator=label(node),
            density=changed / pixels,
            mean_density=all_changed / pixels / frames,
            computed=computed / pixels,
            macs_done=done,
            macs_skipped=macs * ran - done,
            total_macs_done=total_done,
            total_macs_skipped=macs * self.frames - total_done,
            state_bytes=edge.state_bytes(),
        )

    def _dense(self, node: fx.Node, ran: bool) -> LayerStats:
        macs, frames = node.meta["macs"], self.frames
        runs = self.ran.get(node.name, 0)
        done = macs * int(ran)
        return LayerStats(
            path=node.meta.get("path", node.name),
            operator=label(node),
            density=float(ran),
            mean_density=runs / max(frames, 1),
            computed=float(ran),
            macs_done=done,
            macs_skipped=macs * min(frames, 1) - done,
            total_macs_done=macs * runs,
            total_macs_skipped=macs * (frames - runs),
            state_bytes=0,
        )


def explain(program: Program) -> Explanation:
    nodes = [
        n for n in program.plan.graph.graph.nodes if n.op in ("call_function", "call_method", "call_module")
    ]
    total = sum(node.meta.get("macs", 0) for node in nodes if node.target not in (sparsify, densify)) or 1
    rows, before = [], _before_deltas(nodes)
    for node in nodes:
        kind = "dense"
        if node.target in (sparsify, densify):
            kind = "sparsify" if node.target is sparsify else "densify"
        elif is_delta(node):
            kind = "delta"
        macs = 0 if kind in ("sparsify", "densify") else node.meta.get("macs", 0)
        edge = program.edges.get(node.name)
        reason = node.meta.get("why_dense", "unknown") if kind == "dense" else None
        rows.append(
            ExplainRow(
                path=node.meta.get("path", node.name),
                operator=label(node),
                kind=kind,
                reason=reason,
                macs=macs,
                share=macs / total,
                threshold=node.meta.get("threshold"),
                how="weighted" if "shares" in node.meta else str(node.meta.get("gate", "")),
                state_bytes=0 if edge is None else edge.state_bytes(),
                inputs=_read_by(node),
                shape=node.meta.get("shape"),
                outside=program.outside.get(node.name),
                way_out=None if reason is None else way_out(reason, macs / total, node not in before),
            )
        )
    (output,) = (node for node in program.plan.graph.graph.nodes if node.op == "output")
    return Explanation(rows, _read_by(output))


def _before_deltas(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that a delta node follows."""
    before: set[fx.Node] = set()
    for node in reversed(nodes):
        if any(user in before or user.target is sparsify or is_delta(user) for user in node.users):
            before.add(node)
    return before


def _read_by(node: fx.Node) -> tuple[str, ...]:
    """The paths of what a node reads but for weights. A frame's sparsify has the frame's own path, so that says it."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    paths = [source.meta.get("path", source.name) for source in sources]
    return tuple(
        f"frame {path}" if source.op == "placeholder" else path
        for source, path in zip(sources, paths, strict=True)
    )


def label(node: fx.Node) -> str:
    """What a node calls, for people: Conv2d + relu, linear, view."""
    operator = operator_of(node)
    if operator is not None:
        return _name(operator)
    if node.op == "call_module":
        return type(node.graph.owning_module.get_submodule(str(node.target))).__name__
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))


def _name(operator: Any) -> str:
    if isinstance(operator, Fused):
        return " + ".join(map(_name, operator.stages))
    if isinstance(operator, Paired):
        return f"{_name(operator.first)} + {_name(operator.window)}"
    if isinstance(operator, ConvSum):
        return f"{_name(operator.first)} + {_name(operator.second)} + add"
    return str(getattr(operator, "function", type(operator).__name__))


def size_text(size: int) -> str:
    """1.5 MB and the like, in powers of ten."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell."""
    rows = [tuple(head), *(tuple(row) for row in body)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
