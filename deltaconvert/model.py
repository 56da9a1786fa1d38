"""DeltaModel, what a user calls: like the dense network it came from, frame after frame."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import is_fake

from deltaconvert.doubts import doubts
from deltaconvert.errors import DeltaConvertError, InputError, first_line
from deltaconvert.explain import Explanation, explain
from deltaconvert.gate import Gate
from deltaconvert.nodes import names_of, path_of, sparsify
from deltaconvert.running import compiled
from deltaconvert.running.frozen import KEEPS_NO_STATE
from deltaconvert.running.memory import within_memory
from deltaconvert.running.modes import own_types
from deltaconvert.running.monitor import Monitor
from deltaconvert.running.run import Running
from deltaconvert.running.turns import in_turn
from deltaconvert.stats import Stats
from deltaconvert.thresholds import Rule, Threshold, Thresholds, refuse_unknown
from deltaconvert.tracing import parts


def expect_converted(delta: Any) -> None:
    """InputError for a dense network where a converted one is wanted."""
    if not isinstance(delta, DeltaModel):
        raise InputError(
            f"this takes a converted network, not a {type(delta).__name__}: deltaconvert.convert(model, frame)"
        )


class DeltaModel(Running):
    """A converted network: same inputs, same outputs, but each frame recomputes only what changed.

    The images of a batch are streams, each with its own state. The first frame of a stream, and the first after
    reset(), is computed in full. Outputs are new tensors that no later frame writes to; lend() saves that copy.

    On a GPU frames may come from any CUDA stream, even each from another one, and from host memory; a call returns
    before its work is done. Calls from several threads take turns. Models are independent of each other.
    """

    def _begin(self, frames: Sequence[Tensor]) -> None:
        super()._begin(frames)
        # What a graph of torch.compile calls in place of forward.
        outputs: Any = self._planned.output_node().args[0]
        tensors = all(isinstance(output, fx.Node) and "shape" in output.meta for output in outputs)
        self._compiled = compiled.frame_operator(len(outputs)) if tensors else None
        self._number = compiled.enrol(self)
        self.register_buffer("_order", torch.zeros((), device=self.device), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The dense network's call. InputError, with the state untouched, for inputs that do not fit.

        Outputs are the caller's: new tensors that no later frame writes to.
        """
        if isinstance(kwargs, fx.Proxy) or any(isinstance(arg, fx.Proxy) for arg in args):
            raise DeltaConvertError(
                "torch.fx cannot keep a network's state: trace around it, by a Tracer whose is_leaf_module names it"
            )
        frames = self.signature.flatten(args, kwargs)
        # Not is_exporting(): Dynamo of torch 2.11 takes that for true wherever it compiles.
        if torch.compiler.is_dynamo_compiling() and torch.compiler._is_exporting_flag:
            raise DeltaConvertError(f"torch.export {KEEPS_NO_STATE}")
        if torch.compiler.is_dynamo_compiling():
            if self._compiled is not None:
                outputs = self._compiled(self._order, self._number, frames)
                return self.signature.unflatten(outputs if isinstance(outputs, tuple) else [outputs])
            # The network returns sizes, or tensors whose sizes follow from values: no operator of torch can. Decorated
            # only here, because that imports torch's compiler, which takes seconds.
            return self.signature.unflatten(torch.compiler.disable(self.frame)(frames))
        if torch.jit.is_tracing():
            raise DeltaConvertError(f"torch.jit.trace {KEEPS_NO_STATE}")
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
            raise DeltaConvertError(f"make_fx {KEEPS_NO_STATE}")
        # is_exporting is true for the whole process, so another thread may be calling with a real frame.
        if torch.compiler.is_exporting() and any(map(is_fake, frames)):
            raise DeltaConvertError(f"torch.export {KEEPS_NO_STATE}")
        return self.signature.unflatten(self.frame(frames))

    def lend(self, *args: Any, **kwargs: Any) -> Any:
        """The same call without a copy of the outputs: they are the network's own memory, to be read and no more.

        The next frame overwrites them: read them before it, on the CUDA stream of this call. Do not write to them: that
        could stay in all later frames.
        """
        return self.signature.unflatten(self.lent_frame(self.signature.flatten(args, kwargs)))

    # ---- what it is

    @property
    def _planned(self) -> fx.Graph:
        """The graph of the plan for the current size."""
        return self._program.plan.graph.graph

    @property
    def _parts(self) -> dict[str, DeltaModel]:
        """The converted parts of modules that stay whole, by path in the graph; see deltaconvert.tracing.parts."""
        return {path: part.delta for path, part in parts.parts_of(self.graph).items()}

    def install(self, converted: Mapping[str, DeltaModel]) -> None:
        """Put converted modules into those that stay whole."""
        parts.install(self.graph, converted)

    @property
    def backend(self) -> str:
        return self._plans.backend.NAME

    @property
    def inputs(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each input, at the current size."""
        return [(shape, dtype) for shape, (_, dtype, _) in zip(self._size, self._intake.forms, strict=True)]

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The threshold rules, percentages resolved on the example frame; another size or a saved file uses these."""
        return self._plans.thresholds.rules

    @property
    def gate(self) -> Gate:
        """How frames are compared at the input."""
        return self._plans.thresholds.gate or Gate()

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of every node that compares, by path, in the units of its feature map."""
        own = {path_of(n): n.meta["threshold"] for n in self._planned.nodes if "threshold" in n.meta}
        return own | {
            path: amount for part in self._parts.values() for path, amount in part.thresholds.items()
        }

    def doubts(self, frames: Sequence[Tensor]) -> list[str]:
        """What can hardly be meant by its rules, for a call with `frames`."""
        return list(doubts(self._plans.thresholds, self._planned, frames))

    @property
    def names(self) -> list[str]:
        """The paths that rules may name: of every call in the network, and of conversions at this size."""
        nodes = [*self.graph.graph.nodes, *self._planned.nodes]
        own = (name for node in nodes if node.op != "output" for name in names_of(node))
        return list(dict.fromkeys((*own, *(name for part in self._parts.values() for name in part.names))))

    def explain(self, speed: bool = False) -> Explanation:
        """One row for each node: delta or dense, why not and the way out, share of the work, state; print it.

        speed: also measure what to expect on this machine, for a few dense frames' time; a copy runs, not this network.
        """
        found = explain(self._program).with_parts(
            {path: part.explain() for path, part in self._parts.items()}
        )
        if speed:
            from deltaconvert.watching.speed import expected_speed

            return replace(found, speed=expected_speed(self))
        return found

    @property
    def state_bytes(self) -> int:
        """What is kept between frames, for all streams together."""
        return self._program.state_bytes() + sum(part.state_bytes for part in self._parts.values())

    # ---- what it did

    @in_turn
    def stats(self) -> Stats:
        """What the frames so far changed and cost, node by node; see stats.Stats."""
        found = self._tally.stats(self._program)
        if self._monitor is not None:
            found = replace(found, observed=self._monitor.observed())
        return found.with_parts({path: part.stats() for path, part in self._parts.items()})

    @in_turn
    def nonfinite(self) -> list[int]:
        """Of each stream, the pixels of its frames that came in with NaN or infinity so far. Those that enter behind a
        dense part, or inside of one, stats().nonfinite has alone, by path."""
        return self._program.nonfinite()

    @in_turn
    def monitor(self, every: int = 100, *, tile: int = 64, seed: int = 0) -> None:
        """From now on compute a random tile of every `every`th frame again, dense, and keep the difference; 0 stops.

        stats().observed has the result. tile: its side in pixels of the frame. seed: of the tiles' places. A look costs
        a dense run on the part of the frame that the tile depends on, which may be all of it.
        """
        for name, value, least in (("every", every, 0), ("tile", tile, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"monitor: {name} is {value!r}: it is a number from {least}")
        self._monitor = Monitor(self.graph, every, tile, seed) if every else None
        if self._monitor is not None:
            with torch.inference_mode(False), torch.no_grad(), parts.dense_parts(self.graph):
                self._monitor.prepare(self._program.plan, self.blank_frames())

    @in_turn
    def masks(self) -> Mapping[str, Tensor]:
        """The pixels that changed in the last frame, by path: bool (N, 1, H, W)."""
        edges = self._program.edges
        own = {path_of(n): edges[n.name].mask.clone() for n in self._planned.nodes if n.name in edges}
        return own | {path: mask for part in self._parts.values() for path, mask in part.masks().items()}

    @in_turn
    def input_masks(self) -> Tensor:
        """bool (N, H, W): the pixels of its first map among the inputs that changed in the last frame."""
        for node in self._planned.nodes:
            if node.target is sparsify:
                return self._program.edges[node.name].mask[:, 0].clone()
        return torch.ones(self.streams, *self._size[0][2:], dtype=torch.bool)  # nothing in it is a delta

    # ---- others like it

    def with_thresholds(self, threshold: Threshold, *args: Any, **kwargs: Any) -> DeltaModel:
        """The same network under other thresholds, as convert(threshold=...) takes them. Its gate stays, unless they
        come with one.

        args, kwargs: one call of the network, on a frame that relative thresholds are measured on.
        """
        rules = Thresholds.of(threshold)
        rules = rules if rules.gate is not None else replace(rules, gate=self.gate)
        planning = within_memory("the converted network")
        with torch.inference_mode(False), torch.no_grad(), own_types(self.device), planning:
            model = self._under(rules, self.signature.flatten(args, kwargs))
        # Rules of this model may name nodes that only another size has.
        refuse_unknown((name for name in rules.rules if name not in self.rules), model.names, "threshold")
        for doubt in model.doubts(self.signature.flatten(args, kwargs)):
            warnings.warn(doubt, stacklevel=2)
        return model

    def _under(self, rules: Thresholds, frames: Sequence[Tensor]) -> DeltaModel:
        """The same network, with its parts, under other rules. Percentages are measured on a call with `frames`."""
        self._intake.check(frames)
        frames = self._intake.bring(frames)
        if not self._parts:
            return self._another(self.graph, frames, rules)
        with parts.dense_parts(self.graph):
            graph = copy.deepcopy(self.graph)
        calls, converted = parts.calls_of(graph, list(self._parts), (tuple(frames), {})), {}
        for path, part in self._parts.items():
            if path not in calls:
                raise InputError(
                    f"the network does not get to {path} on this frame: give one on which it does"
                )
            args, kwargs = calls[path]
            converted[path] = part._under(rules, part.signature.flatten(args, kwargs))
        model = self._another(graph, frames, rules)
        model.install(converted)
        return model

    def for_streams(self, streams: int) -> DeltaModel:
        """The same network for a batch of `streams` images of the size it runs at now, with state of its own."""
        if isinstance(streams, bool) or not isinstance(streams, int) or streams < 1:
            raise InputError(f"streams is {streams!r}: it is a number from 1")
        if self._parts:
            raise InputError(
                f"the network could not be captured as a whole, only {', '.join(self._parts)}: for another number of "
                "streams convert it again"
            )
        self._intake.check_batches()
        sizes = tuple((streams, *size[1:]) for size in self._size)
        self._intake.check_sizes(sizes)
        try:
            with torch.inference_mode(False), torch.no_grad(), within_memory("the converted network"):
                return self._another(self.graph, self._intake.blank(sizes), self._plans.thresholds)
        except DeltaConvertError:
            raise
        except Exception as error:  # a program of torch.export holds for the batch that it was made with
            raise InputError(
                f"the network cannot run on a batch of {streams}: {first_line(error)}"
            ) from error

    def _another(self, graph: fx.GraphModule, frames: Sequence[Tensor], rules: Thresholds) -> DeltaModel:
        """A network of the same kind, with state of its own."""
        plans = self._plans
        model = DeltaModel(
            graph, self.signature, frames, rules, plans.backend, self.keep_dense, plans.settled
        )
        model.info = self.info
        return model

    def save(self, path: Any) -> None:
        """Write the converted network into one file that deltaconvert.load reads without the network's own code."""
        from deltaconvert.container import save

        save(self, path)
