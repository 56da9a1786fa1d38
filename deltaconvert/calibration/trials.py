"""Tries thresholds on one clip: their loss against the dense network's outputs, and their work."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deltaconvert.backends import reference
from deltaconvert.calibration.crew import side_by_side
from deltaconvert.calibration.known import Known
from deltaconvert.calibration.per_stream import reach_of, threshold_of, watch_of
from deltaconvert.calibration.replay import Replay
from deltaconvert.calibration.sensitivity import gains
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.sites import compared, sites_of
from deltaconvert.calibration.work import Work
from deltaconvert.errors import InputError
from deltaconvert.gate import Gate, guarded
from deltaconvert.lower import Program
from deltaconvert.metrics import Metric, name_of
from deltaconvert.model import DeltaModel
from deltaconvert.plan import Plan, plan
from deltaconvert.reach import narrowed
from deltaconvert.thresholds import KINDS, NARROW, WEIGHTED, Rule, Thresholds, as_rule
from deltaconvert.watching.measure import Difference

Decode = Callable[[Any], Any]
FARTHEST = 64.0  # largest factor between a share of `alike` and the median one


class Trials:
    """A clip to try settings on, on the reference backend, whose masks the work is counted by.

    frames: flat inputs, one call each.
    decode: makes of an output what the metric takes; applied at once, to save memory.
    file: keeps outcomes, a line each; known ones are not tried again.
    workers: settings that are tried at a time in processes of one thread each, on the CPU.
    streams: settings that are tried at a time as streams of one batch. That costs little more than one where launching
        kernels takes the time.
    replay: whether frames are recorded as CUDA graphs, on a GPU.
    cost: of a node's whole map, to count the work by; by default its multiply-accumulates.
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
        workers: int = 1,
        streams: int = 1,
        replay: bool = True,
        cost: Callable[[fx.Node], float] | None = None,
    ):
        if len(frames) < 2:
            raise InputError(
                f"calibration needs at least 2 frames, the first one is always full: found {len(frames)}"
            )
        self.model, self.frames, self.metric, self.guide, self.told = model, frames, metric, guide, told
        self._decode = decode or (lambda output: output)
        self._workers = workers if model.device.type == "cpu" else 1
        alone = model.signature.sizes is not None or any(len(x) != 1 or x.dim() != 4 for x in frames[0])
        self.streams = 1 if alone else streams
        self.at_once = self._workers * self.streams
        with torch.inference_mode(False), torch.no_grad():
            self._program = self._plan(model, frames[0])
            if not self._program.edges:
                raise InputError(
                    "nothing in the network runs as a delta, explain() says why: no threshold acts in it"
                )
            self.sites = sites_of(self._program, map(self._repeated, self._some))
            self.dense = [self._call(frame) for frame in frames]
        places = {id(site.edge): place for place, site in enumerate(self.sites)}
        self._reaches = [
            (step, [(r, places.get(id(source))) for r, source in zip(step.reaches, step.inputs, strict=True)])
            for step in self._program.operators
        ]
        seen = [pair for _, pairs in self._reaches for pair in pairs]
        self.narrowing = frozenset(p for r, p in seen if p is not None and narrowed(r) is not r)
        self._seen = [self._decode(output) for output in self.dense]
        if all(seen is output for seen, output in zip(self._seen, self.dense, strict=True)):
            self._seen = self.dense
        self._work = Work(self._program, self.streams, cost)
        self.replay = Replay(self._program, self._work) if replay and model.device.type == "cuda" else None
        self._known = Known(self._fingerprint(), file)

    def __call__(self, setting: Setting) -> Outcome:
        (outcome,) = self.many([setting])
        return outcome

    @property
    def count(self) -> int:
        """How many settings were tried, also by an earlier process."""
        return len(self._known)

    def dense_loss(self) -> float:
        """Of the dense network's own outputs: 0, if the metric is a loss."""
        return _loss(self.metric, self._seen, self._seen)

    def many(self, settings: Sequence[Setting]) -> list[Outcome]:
        """The outcome of each; those that are not known yet are tried side by side."""
        done = self.done_by(math.inf, settings)
        return [done[setting] for setting in settings]

    def done_by(self, until: float, settings: Sequence[Setting]) -> dict[Setting, Outcome]:
        """The outcomes that are known at `until`, a time.monotonic(). A trial that is under way then is broken off."""
        fresh = {self._known.key(setting): setting for setting in settings}
        fresh = {key: setting for key, setting in fresh.items() if key not in self._known}
        keys = list(fresh)
        groups = [keys[first : first + self.streams] for first in range(0, len(keys), self.streams)]
        items = [[fresh[key] for key in group] for group in groups]
        for place, outcomes in side_by_side(partial(self._try, until=until), items, self._workers):
            for key, outcome in zip(groups[place], outcomes, strict=bool(outcomes)):
                self._known.add(key, outcome)
                self.told(fresh[key], outcome)
        keys = [self._known.key(setting) for setting in settings]
        return {s: self._known[key] for s, key in zip(settings, keys, strict=True) if key in self._known}

    def afresh(self, settings: Sequence[Setting]) -> list[Outcome]:
        """The outcome of each, tried again without recorded graphs; at most as many as run at a time."""
        self.replay = None
        return self._try(settings)

    def thresholds(self, setting: Setting) -> Thresholds:
        """The rules that convert takes. Nodes that exist only at other sizes get the median share of their kind."""
        rules: dict[str, Rule] = {}
        for kind in KINDS:
            found = sorted(
                share for site, share in zip(self.sites, setting.shares, strict=True) if site.kind == kind
            )
            rules[kind] = f"{found[len(found) // 2] * 100:.4g}%" if found else 0.0
        for place, (site, share) in enumerate(zip(self.sites, setting.shares, strict=True)):
            amount = share * site.scale
            weighted = setting.weighted and amount > 0 and site.shares is not None
            words = [WEIGHTED] * weighted + [NARROW] * (place in setting.narrow)
            rule: Rule = " ".join([repr(amount), *words]) if words else amount
            rules.update((as_rule(name), rule) for name in site.names)
        return Thresholds(rules, self._guarded(setting.gate))

    def alike(self) -> tuple[float, ...]:
        """Shares at which a change that is just dropped makes an equally large error at the end of the network,
        whatever the site; their median is 1, and so is the share of a site without a gradient. The end is what
        `decode` makes of the outputs, or the outputs if that has no gradient. If these have none either, every share
        is 1, and a tenth for gates and statistics."""
        graph = self._alone()
        # A caller that tries only some sites has removed the others.
        edges = {id(site.edge) for site in self.sites}
        names = [node.name for node in compared(graph) if id(self._program.edges[node.name]) in edges]
        found: list[float] = []
        for end in (self._end, list):
            with suppress(RuntimeError):  # of an operator without a gradient
                found = found or gains(graph, names, self._some, end)
        found = found or [math.nan] * len(names)
        pairs = zip(self.sites, found, strict=True)
        alike = [1 / (site.scale * gain) if site.scale * gain > 0 else math.nan for site, gain in pairs]
        known = sorted(share for share in alike if math.isfinite(share))
        if not known:
            return tuple(0.1 if site.kind in ("gate", "statistics") else 1.0 for site in self.sites)
        middle = known[len(known) // 2]
        return tuple(
            _rounded(min(max(share / middle, 1 / FARTHEST), FARTHEST)) if math.isfinite(share) else 1.0
            for share in alike
        )

    def place(self, settings: Sequence[Setting]) -> None:
        """Give each stream of the program the thresholds of its setting and reset it. Streams that are left over get
        the last setting."""
        settings = [*settings, *[settings[-1]] * (self.streams - len(settings))]
        for place, site in enumerate(self.sites):
            edge, amounts = site.edge, [setting.shares[place] * site.scale for setting in settings]
            weighted = [setting.weighted for setting in settings]
            edge.threshold = threshold_of(edge, site.shares, amounts, weighted)
            if isinstance(edge, reference.FrameEdge):
                gates = [
                    self._guarded(setting.gate) if site.kind == "input" else Gate() for setting in settings
                ]
                edge.watch = watch_of(edge, gates, amounts)
        for step, pairs in self._reaches:
            narrow = [[place in setting.narrow for setting in settings] for _, place in pairs]
            found = zip(pairs, narrow, strict=True)
            step.reaches = [reach_of(reach, chosen, self.model.device) for (reach, _), chosen in found]
        self._program.reset()
        if self.replay is not None:
            self.replay.forget()

    def play(
        self, settings: Sequence[Setting], frames: Iterable[Sequence[Tensor]], decode: Decode | None = None
    ) -> Iterator[tuple[list[Any], list[float]]]:
        """For each frame: the decoded output and the work of each setting; at most as many settings as streams."""
        self.place(settings)
        decode = decode or self._decode
        for frame in frames:
            outputs, done = self._run(frame)
            yield [decode(output) for output in outputs[: len(settings)]], done[: len(settings)].tolist()

    @property
    def _some(self) -> Sequence[Sequence[Tensor]]:
        """A few frames from all over the clip."""
        return self.frames[:: max(1, len(self.frames) // 4)][:4]

    def _try(self, settings: Sequence[Setting], until: float = math.inf) -> list[Outcome]:
        """The outcome of each, or none of them if it is later than `until` before the last frame."""
        self.place(settings)
        differences = [Difference() for _ in settings]
        seen: list[list[Any]] = [[] for _ in settings]
        outputs: list[list[Any]] = [[] for _ in settings]
        work = []
        for place, frame in enumerate(self.frames):
            if time.monotonic() > until:
                return []
            dense, (found, done) = _tensors(self.dense[place]), self._run(frame)
            work += [done] if place else []
            for stream, output in zip(range(len(settings)), found, strict=False):
                if self.guide is None:
                    differences[stream].add(output, dense)
                elif self.guide is not self.metric:
                    outputs[stream].append(output)
                seen[stream].append(self._decode(output))
        outcomes = []
        for stream, done in enumerate(torch.stack(work).mean(0).tolist()[: len(settings)]):
            loss = guide = _loss(self.metric, seen[stream], self._seen)
            if self.guide is None:
                guide = differences[stream].relative
            elif self.guide is not self.metric:
                guide = _loss(self.guide, outputs[stream], self.dense)
            outcomes.append(Outcome(loss, guide, done))
        return outcomes

    def _run(self, frame: Sequence[Tensor]) -> tuple[list[Any], Tensor]:
        """The output and the work of each stream."""
        frame = self._repeated(frame)
        with torch.inference_mode(False), torch.no_grad():
            if self.replay is not None:
                leaves, done = self.replay.run(frame)
            else:
                leaves, done = self._program.run(frame), self._work()
            output = self.model.signature.unflatten(leaves)
        if self.streams == 1:
            return [output], done
        return [_of_stream(output, stream) for stream in range(self.streams)], done

    def _guarded(self, gate: Gate) -> Gate:
        """A gate to try, with the guards of the model, under which it will run."""
        return guarded(gate, by=self.model.gate)

    def _repeated(self, frame: Sequence[Tensor]) -> list[Tensor]:
        if self.streams == 1:
            return list(frame)
        return [x.repeat(self.streams, *[1] * (x.dim() - 1)) for x in frame]

    def _call(self, frame: Sequence[Tensor]) -> Any:
        return self.model.signature.unflatten(list(self.model.graph(*frame)))

    def _plan(self, model: DeltaModel, frame: Sequence[Tensor]) -> Program:
        return Program(self._planned(model, self._repeated(frame)), reference)

    @staticmethod
    def _planned(model: DeltaModel, frame: Sequence[Tensor]) -> Plan:
        return plan(copy.deepcopy(model.graph), frame, Thresholds.of(0.0), model.keep_dense)

    def _alone(self) -> fx.GraphModule:
        """The planned network for one stream: the dense one as a function of a frame."""
        alone = self._program.plan if self.streams == 1 else self._planned(self.model, self.frames[0])
        return alone.graph

    def _end(self, leaves: Sequence[Tensor]) -> Any:
        return self._decode(self.model.signature.unflatten(list(leaves)))

    def _fingerprint(self) -> str:
        """A digest of all that an outcome depends on besides its setting; functions by their names."""
        functions = [None if f is None else name_of(f) for f in (self.metric, self.guide, self._decode)]
        guards = self._guarded(Gate()).to_json()
        digest = hashlib.sha256(repr([[site.names for site in self.sites], functions, guards]).encode())
        for tensor in (*_tensors(self.model.graph.state_dict()), *itertools.chain(*self.frames)):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12] + f"-{len(self.frames)}"


def _loss(metric: Metric, ours: list[Any], dense: list[Any]) -> float:
    found = metric(ours, dense)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the metric {name_of(metric)} gives {type(found).__name__}: it has to give one number, the loss"
        ) from error


def _rounded(share: float) -> float:
    """To three digits. The last ones of a gradient differ from run to run on a GPU, and a resumed calibration finds its
    trials by their shares."""
    return float(f"{share:.3g}")


def _of_stream(output: Any, stream: int) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[stream : stream + 1], output)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
