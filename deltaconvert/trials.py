"""Trying thresholds out: one clip, the dense network's answers to it, and the loss and the work of any thresholds."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.backends import reference
from deltaconvert.check import names_of, sparsify
from deltaconvert.errors import InputError
from deltaconvert.gate import Gate, Watch
from deltaconvert.lower import Program
from deltaconvert.measure import Difference
from deltaconvert.metrics import Metric
from deltaconvert.model import DeltaModel
from deltaconvert.passes.place_thresholds import kind_of, shares
from deltaconvert.plan import plan
from deltaconvert.thresholds import WEIGHTED, Rule, Thresholds, as_rule

Decode = Callable[[Any], Any]


@dataclass(frozen=True)
class Setting:
    """Thresholds to try. shares: of each site's scale, in the order of the sites; weighted: by channels, but at inputs.
    gate: of the frames."""

    shares: tuple[float, ...]
    weighted: bool = False
    gate: Gate = field(default_factory=Gate)

    def times(self, factor: float, but: Collection[int] = ()) -> Setting:
        """Every share times a factor, but for those of some sites."""
        scaled = (share if place in but else share * factor for place, share in enumerate(self.shares))
        return replace(self, shares=tuple(scaled))

    def at(self, place: int, share: float) -> Setting:
        return replace(self, shares=(*self.shares[:place], share, *self.shares[place + 1 :]))


@dataclass(frozen=True)
class Outcome:
    """loss: of the metric; guide: of the metric that sensitivities go by; work: share of a dense frame's
    multiply-accumulates, the first frame left out."""

    loss: float
    guide: float
    work: float


@dataclass(frozen=True)
class Site:
    """A node that may have a threshold. scale: the mean magnitude there, over the clip."""

    names: tuple[str, ...]
    kind: str
    scale: float
    edge: Any
    shares: Tensor | None  # of a weighted threshold, (C)


class Trials:
    """A clip to try settings on, on the reference backend, whose masks are what the work is counted by.

    frames: calls of the network's inputs. decode: what the metric is given of an output, to keep memory small.
    file: outcomes are kept there, a line each, and known ones are not tried again.
    """

    def __init__(
        self,
        model: DeltaModel,
        frames: Sequence[Sequence[Tensor]],
        metric: Metric,
        *,
        decode: Decode | None = None,
        guide: Metric | None = None,
        file: Path | None = None,
        told: Callable[[Setting, Outcome], None] = lambda setting, outcome: None,
    ):
        if len(frames) < 2:
            raise InputError(
                f"calibration needs at least 2 frames, the first one is always full: found {len(frames)}"
            )
        self.model, self.frames, self.metric, self.guide, self.told = model, frames, metric, guide, told
        self._decode = decode or (lambda output: output)
        with torch.inference_mode(False), torch.no_grad():
            self._program = self._plan(model, frames[0])
            self.sites = self._sites()
            self.dense = [self._call(frame) for frame in frames]
        self._seen = [self._decode(output) for output in self.dense]
        if all(seen is output for seen, output in zip(self._seen, self.dense, strict=True)):
            self._seen = self.dense
        nodes = {
            node.name: node.meta
            for node in self._program.plan.graph.graph.nodes
            if node.target is not sparsify
        }
        macs = [nodes.get(name, {}).get("macs", 0) for name in self._program.edges]
        pixels = [edge.mask.numel() for edge in self._program.edges.values()]
        self._islands = sum(nodes[name].get("macs", 0) for name in self._program.islands)
        self._all = max(self._islands + sum(macs), 1)
        a_pixel = [count / size for count, size in zip(macs, pixels, strict=True)]
        self._macs = torch.tensor(a_pixel, dtype=torch.float64, device=model.device)
        self._file, self._known = file, {}
        self._clip = self._fingerprint()
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                key, outcome = json.loads(line)
                self._known[key] = Outcome(**outcome)

    def __call__(self, setting: Setting) -> Outcome:
        key = self._key(setting)
        if key not in self._known:
            self._known[key] = self._try(setting)
            if self._file is not None:
                with self._file.open("a") as out:
                    out.write(json.dumps([key, vars(self._known[key])]) + "\n")
        self.told(setting, self._known[key])
        return self._known[key]

    def thresholds(self, setting: Setting) -> Thresholds:
        """The rules that convert takes. Nodes that only other sizes have go by the middle share of their kind."""
        rules: dict[str, Rule] = {}
        word = f" {WEIGHTED}" if setting.weighted else ""
        for kind in ("input", "activation", "gate", "statistics"):
            found = sorted(
                share for site, share in zip(self.sites, setting.shares, strict=True) if site.kind == kind
            )
            rules[kind] = f"{found[len(found) // 2] * 100:.4g}%" if found else 0.0
        for site, share in zip(self.sites, setting.shares, strict=True):
            amount = share * site.scale
            rule = f"{amount!r}{word}" if amount > 0 and site.shares is not None else amount
            rules.update((as_rule(name), rule) for name in site.names)
        return Thresholds(rules, setting.gate)

    def place(self, setting: Setting) -> None:
        """Set the thresholds of the program and forget its state."""
        for site, share in zip(self.sites, setting.shares, strict=True):
            edge, amount = site.edge, share * site.scale
            if isinstance(edge, reference.FrameEdge):
                where = (tuple(edge.values.shape), edge.values.dtype, edge.values.device, amount)
                gated = site.kind == "input" and setting.gate.to_json()
                edge.threshold, edge.watch = amount, Watch(setting.gate, *where) if gated else None
            else:
                by_channels = amount * site.shares if setting.weighted and site.shares is not None else amount
                edge.threshold = by_channels if amount > 0 else None
        self._program.reset()

    def play(self, setting: Setting, frames: Sequence[Sequence[Tensor]]) -> list[tuple[Any, float]]:
        """(decoded output, work) of each frame."""
        self.place(setting)
        return [(self._decode(self._run(frame)), float(self._work())) for frame in frames]

    def _try(self, setting: Setting) -> Outcome:
        self.place(setting)
        difference, seen, outputs, work = Difference(), [], [], []
        for place, frame in enumerate(self.frames):
            output = self._run(frame)
            work += [self._work()] if place else []
            difference.add(output, _tensors(self.dense[place]))
            seen.append(self._decode(output))
            if self.guide is not None:
                outputs.append(output)
        loss = float(self.metric(seen, self._seen))
        guide = difference.relative if self.guide is None else float(self.guide(outputs, self.dense))
        return Outcome(loss, guide, float(torch.stack(work).mean()))

    def _run(self, frame: Sequence[Tensor]) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return self.model.signature.unflatten(self._program.run(frame))

    def _call(self, frame: Sequence[Tensor]) -> Any:
        return self.model.signature.unflatten(list(self.model.graph(*frame)))

    def _work(self) -> Tensor:
        """Of the last frame, on the device: nothing waits for it."""
        done = (self._program.count()[0, :, 0].double() * self._macs).sum()
        return (done + self._islands) / self._all

    def _plan(self, model: DeltaModel, frame: Sequence[Tensor]) -> Program:
        exact = Thresholds.of(0.0)
        return Program(plan(copy.deepcopy(model.graph), frame, exact, model.keep_dense), reference)

    def _sites(self) -> list[Site]:
        """In the order of the graph; magnitudes are means over some frames of the clip."""
        nodes = [node for node in self._program.plan.graph.graph.nodes if "placed" in node.meta]
        sums = dict.fromkeys((node.name for node in nodes), 0.0)
        some = self.frames[:: max(1, len(self.frames) // 4)][:4]
        for frame in some:
            self._program.reset()
            self._program.run(frame)
            for name in sums:
                sums[name] += float(self._program.edges[name].values.abs().mean(dtype=torch.float32)) / len(
                    some
                )
        sites = []
        for node in nodes:
            edge = self._program.edges[node.name]
            weights = (
                None if node.target is sparsify else shares(node).to(edge.values.device, edge.values.dtype)
            )
            sites.append(Site(names_of(node), kind_of(node) or "activation", sums[node.name], edge, weights))
        return sites

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr([site.names for site in self.sites]).encode())
        for frame in (self.frames[0], self.frames[-1]):
            for tensor in frame:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12] + f"-{len(self.frames)}-{getattr(self.metric, '__name__', 'metric')}"

    def _key(self, setting: Setting) -> str:
        text = json.dumps([[f"{s:.6g}" for s in setting.shares], setting.weighted, setting.gate.to_json()])
        return f"{self._clip}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
