"""stats: what a converted network did, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import fx

from deltaconvert.lower import Program
from deltaconvert.nodes import is_call, path_of, sparsify
from deltaconvert.text import label, size_text, table

if TYPE_CHECKING:
    from deltaconvert.running.monitor import Observed


@dataclass(frozen=True)
class LayerStats:
    """One node over the frames so far. Pixels are those of all streams together.

    density: share of the node's pixels that changed; computed: share that was computed (candidates, and what a
    backend computes along with them); both of the last frame and, as mean_..., over all frames. The CPU computes whole
    maps where so many pixels are candidates that a list of them is no faster: then more work is done there than on the
    reference backend, by whose masks `calibrate` counts it.
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
    """What the frames so far did.

    gates: by path of each gated input; "held": pixels with NaN or infinity that were kept out so far, "cuts": full
        frames by `cut` so far, the first one of each stream among them, "waiting": tiles that wait for their turn now.
    nonfinite: by path of each place where frames, or dense values, become deltas: pixels that came in as changed with
        NaN or infinity in a channel so far, if there were any. They were computed as by the dense network. "held" ones
        are not among them.
    observed: what the monitor found, if there is one.
    """

    frames: int
    layers: list[LayerStats]
    gates: dict[str, dict[str, int]] = field(default_factory=dict)
    observed: Observed | None = None
    nonfinite: dict[str, int] = field(default_factory=dict)

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

    def with_parts(self, parts: Mapping[str, Stats]) -> Stats:
        """Insert the layers of converted parts (path -> part) before the island that holds them, and take off their
        work."""
        layers = []
        for layer in self.layers:
            inner = [
                each
                for path, part in parts.items()
                if path.startswith(f"{layer.path}.")
                for each in part.layers
            ]
            dense = sum(each.macs_done + each.macs_skipped for each in inner)
            total = sum(each.total_macs_done + each.total_macs_skipped for each in inner)
            done, all_done = max(layer.macs_done - dense, 0), max(layer.total_macs_done - total, 0)
            layers += [*inner, replace(layer, macs_done=done, total_macs_done=all_done)]
        nonfinite = {path: count for part in parts.values() for path, count in part.nonfinite.items()}
        return replace(self, layers=layers, nonfinite={**self.nonfinite, **nonfinite})

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "work": self.work,
            "mean_work": self.mean_work,
            "state_bytes": self.state_bytes,
            "gates": self.gates,
            "nonfinite": self.nonfinite,
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
        tail += "".join(f"\n{said}" for said in nonfinite_text(self.nonfinite))
        if self.observed is not None:
            tail += f"\n{self.observed}"
        return table(head, body) + "\n" + tail


def nonfinite_text(counts: Mapping[str, int]) -> list[str]:
    """A sentence for each path of Stats.nonfinite, with the way out."""
    way_out = "in a frame, the gate's nonfinite=\"hold\" keeps a pixel's last value instead"
    return [
        f"{path}: {count} pixel{'s' * (count != 1)} came in with NaN or infinity; {way_out}"
        for path, count in counts.items()
    ]


@dataclass
class Tally:
    """Counts of the frames so far. They stay on the device until somebody asks."""

    frames: int = 0
    counted: Any = None  # int64 (2, edges, 2), as Program.count gives it
    ran: dict[str, int] = field(default_factory=dict)  # dense node name -> frames in which it ran

    def add(self, program: Program) -> None:
        self.frames += 1
        if program.edges:
            self.counted = program.count()
        for name, island in program.islands.items():
            self.ran[name] = self.ran.get(name, 0) + island.ran

    def stats(self, program: Program) -> Stats:
        layers, gates, nonfinite = [], {}, {}
        none = [(0, 0)] * len(program.edges)
        last, total = (none, none) if self.counted is None else self.counted.tolist()
        counts = dict(zip(program.edges, zip(last, total, strict=True), strict=True))
        for node in program.plan.graph.graph.nodes:
            macs = node.meta.get("macs", 0)
            if node.name in program.edges:
                streams, _, height, width = node.meta["shape"]
                macs = 0 if node.target is sparsify else macs
                kept = program.edges[node.name].state_bytes()
                layers.append(self._layer(node, macs, streams * height * width, *counts[node.name], kept))
                if node.target is sparsify and (count := sum(program.edges[node.name].nonfinite.tolist())):
                    nonfinite[path_of(node)] = count
                if "gate" in node.meta:
                    gates[path_of(node)] = program.watches[node.name].report()
            elif macs and is_call(node):  # a dense node runs or not, like a map of one pixel
                ran, runs = int(program.islands[node.name].ran), self.ran.get(node.name, 0)
                layers.append(self._layer(node, macs, 1, (ran, ran), (runs, runs)))
        return Stats(self.frames, layers, gates, nonfinite=nonfinite)

    def _layer(
        self,
        node: fx.Node,
        macs: int,
        pixels: int,
        last: Sequence[int],
        total: Sequence[int],
        state_bytes: int = 0,
    ) -> LayerStats:
        """last, total: of the last frame and of all, the pixels computed and changed."""
        (computed, changed), (all_computed, all_changed) = last, total
        done, all_done = macs * computed // pixels, macs * all_computed // pixels
        return LayerStats(
            path=path_of(node),
            operator=label(node),
            density=changed / pixels,
            mean_density=all_changed / pixels / max(self.frames, 1),
            computed=computed / pixels,
            macs_done=done,
            macs_skipped=macs * min(self.frames, 1) - done,
            total_macs_done=all_done,
            total_macs_skipped=macs * self.frames - all_done,
            state_bytes=state_bytes,
        )
