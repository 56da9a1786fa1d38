"""run: a DeltaModel is called like the dense network it came from, frame after frame."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import is_fake

from deltaconvert import compiled, parts, snapshot
from deltaconvert.check import names_of, path_of, sparsify
from deltaconvert.errors import DeltaConvertError, InputError, first_line
from deltaconvert.explain import Explanation, explain
from deltaconvert.gate import Gate
from deltaconvert.lower import Program
from deltaconvert.memory import within_memory
from deltaconvert.monitor import Monitor
from deltaconvert.plan import Plan, plan
from deltaconvert.signature import Signature
from deltaconvert.stats import Stats, Tally
from deltaconvert.thresholds import Rule, Threshold, Thresholds, refuse_unknown
from deltaconvert.turns import Turns, in_turn

Sizes = tuple[tuple[int, ...], ...]


def expect_converted(delta: Any) -> None:
    """InputError for a dense network where a converted one is wanted."""
    if not isinstance(delta, DeltaModel):
        raise InputError(
            f"this takes a converted network, not a {type(delta).__name__}: deltaconvert.convert(model, frame)"
        )


class DeltaModel(nn.Module):
    """A converted network: same inputs, same outputs, but each frame recomputes only what changed.

    The images of a batch are streams, each with its own state. The first frame of a stream, and the first after
    reset(), is computed in full. Outputs are new tensors that no later frame writes to.

    On a GPU frames may come from any stream, also each from another one, and from host memory; a call returns before
    its work is done. Calls from several threads take turns; models do not know of each other.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        signature: Signature,
        frames: Sequence[Tensor],
        thresholds: Thresholds,
        backend: ModuleType,
        keep_dense: Sequence[str] = (),
        settled: dict[Any, Any] | None = None,
    ):
        """settled: what its programs find by trying, shared with models of the same network."""
        super().__init__()
        self.graph = graph  # the dense network in its normal form, for every input size
        self.signature, self.keep_dense = signature, tuple(keep_dense)
        self.example = [(tuple(frame.shape), frame.dtype) for frame in frames]
        self.info: dict[
            str, Any
        ] = {}  # plain JSON that a saved file carries along: where the network came from
        self._thresholds, self._backend = thresholds, backend
        self._like = [(frame.dim(), frame.dtype, frame.device) for frame in frames]
        self._plans: dict[Sizes, Plan] = {}
        self._settled: dict[Any, Any] = {} if settled is None else settled
        self._turns = Turns(frames[0].device)
        with self._turns.turn():
            self._program = self._program_for(frames)
        self._size = _sizes(frames)
        self._interrupted = False
        self._monitor: Monitor | None = None
        self._enrol()
        super().train(False)

    def _enrol(self) -> None:
        """What a graph of torch.compile calls in place of forward."""
        outputs: Any = self._program.plan.graph.graph.output_node().args[0]
        tensors = all(isinstance(output, fx.Node) for output in outputs)
        self._compiled = compiled.frame_operator(len(outputs)) if tensors else None
        self._number = compiled.enrol(self)
        self.register_buffer("_order", torch.zeros((), device=self.device), persistent=False)

    @property
    def backend(self) -> str:
        return self._backend.NAME

    @property
    def device(self) -> torch.device:
        """Where its frames have to be."""
        return self._like[0][2]

    @property
    def streams(self) -> int:
        """The number of streams: the batch size of the frames."""
        return self._program.plan.streams

    @property
    def inputs(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each input, at the size that it runs now."""
        return [(shape, dtype) for shape, (_, dtype, _) in zip(self._size, self._like, strict=True)]

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of every node that compares, by path, in the units of its feature map."""
        nodes = self._program.plan.graph.graph.nodes
        own = {path_of(node): node.meta["threshold"] for node in nodes if "threshold" in node.meta}
        return own | {
            path: amount for part in self._parts.values() for path, amount in part.thresholds.items()
        }

    @property
    def names(self) -> list[str]:
        """The paths that rules may name: of every call in the network, and of conversions at this size."""
        nodes = [*self.graph.graph.nodes, *self._program.plan.graph.graph.nodes]
        own = (name for node in nodes if node.op != "output" for name in names_of(node))
        return list(dict.fromkeys((*own, *(name for part in self._parts.values() for name in part.names))))

    @property
    def _parts(self) -> dict[str, DeltaModel]:
        """The converted parts of modules that stay whole, by path in the graph; see deltaconvert.parts."""
        return {path: part.delta for path, part in parts.parts_of(self.graph).items()}

    def install(self, converted: Mapping[str, DeltaModel]) -> None:
        """Put converted modules into those that stay whole."""
        parts.install(self.graph, converted)

    def _refuse_parts(self, wish: str) -> None:
        if self._parts:
            raise InputError(
                f"the network could not be captured as a whole, only {', '.join(self._parts)}: for {wish} convert it "
                "again"
            )

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The threshold rules, those of the example frame resolved: what another size or a saved file goes by."""
        return self._thresholds.rules

    @property
    def gate(self) -> Gate:
        """How frames are looked at where they come in."""
        return self._thresholds.gate or Gate()

    def with_thresholds(self, threshold: Threshold, *args: Any, **kwargs: Any) -> DeltaModel:
        """The same network under other thresholds, as convert(threshold=...) takes them. Its gate stays, unless they
        come with one.

        args, kwargs: one call of the network, on a frame that relative thresholds are measured on.
        """
        rules = Thresholds.of(threshold)
        rules = rules if rules.gate is not None else replace(rules, gate=self.gate)
        with torch.inference_mode(False), torch.no_grad(), within_memory("the converted network"):
            model = self._under(rules, self.signature.flatten(args, kwargs))
        # Rules of this model may name nodes that only another size has.
        refuse_unknown((name for name in rules.rules if name not in self.rules), model.names, "threshold")
        model.info = self.info
        return model

    def _under(self, rules: Thresholds, frames: Sequence[Tensor]) -> DeltaModel:
        """The same under other rules, its parts too; each measures on what it is called with for `frames`."""
        self._check(frames)
        graph, converted = self.graph, {}
        if self._parts:
            with parts.dense_parts(self.graph):
                graph = copy.deepcopy(self.graph)
            calls = parts.calls_of(graph, list(self._parts), (tuple(frames), {}))
            for path, part in self._parts.items():
                if path not in calls:
                    raise InputError(
                        f"the network does not get to {path} on this frame: give one on which it does"
                    )
                called, named = calls[path]
                converted[path] = part._under(rules, part.signature.flatten(called, named))
        model = DeltaModel(
            graph, self.signature, frames, rules, self._backend, self.keep_dense, self._settled
        )
        model.install(converted)
        return model

    def for_streams(self, streams: int) -> DeltaModel:
        """The same network for a batch of `streams` images of the size it runs at now, with state of its own."""
        if isinstance(streams, bool) or not isinstance(streams, int) or streams < 1:
            raise InputError(f"streams is {streams!r}: it is a number from 1")
        self._refuse_parts("another number of streams")
        for place, (dim, _, _) in enumerate(self._like):
            if dim != 4:
                raise InputError(f"input {place} has {dim} dimensions, not N C H W: it has no batch to widen")
        frames = self._blank(streams)
        self._check_sizes(frames)
        try:
            with torch.inference_mode(False), torch.no_grad(), within_memory("the converted network"):
                model = DeltaModel(
                    self.graph,
                    self.signature,
                    frames,
                    self._thresholds,
                    self._backend,
                    self.keep_dense,
                    self._settled,
                )
        except DeltaConvertError:
            raise
        except Exception as error:  # a program of torch.export holds for the batch that it was made with
            raise InputError(
                f"the network cannot run on a batch of {streams}: {first_line(error)}"
            ) from error
        model.info = self.info
        return model

    def blank_frames(self) -> list[Tensor]:
        """Zeros of the shapes, types and device of its inputs, flat."""
        return self._blank(self.streams)

    def frame_buffers(self) -> list[Tensor]:
        """The memory that frames are read from, flat: fill it and call the network with it, and nothing is copied.

        On a CUDA device it belongs to the frame's graph, which the first frame makes; it stays the same until the size
        changes. Write to it on the stream that calls the network: what is written before a call is its frame. On other
        devices these are new tensors.
        """
        found = self._program.buffers
        if found == []:
            raise InputError("there is no graph to fill before the first frame: call the network once")
        return self.blank_frames() if found is None else found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The dense network's call. InputError, with the state untouched, for inputs that do not fit.

        Outputs are the caller's: new tensors that no later frame writes to.
        """
        frames = self.signature.flatten(args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            if self._compiled is not None:
                outputs = self._compiled(self._order, self._number, frames)
                return self.signature.unflatten(outputs if isinstance(outputs, tuple) else [outputs])
            # Of networks that return sizes of their frame, which no operator of torch can. Asked for only here: it
            # brings the compiler in, for seconds.
            return self.signature.unflatten(torch.compiler.disable(self.frame)(frames))
        # torch says of the whole process that it is exporting: another thread's call is a frame.
        if torch.compiler.is_exporting() and any(map(is_fake, frames)):
            raise DeltaConvertError("torch.export cannot keep a network's state: use deltaconvert.export_pt2")
        return self.signature.unflatten(self.frame(frames))

    def frame(self, frames: Sequence[Tensor]) -> list[Any]:
        """The call on flat inputs, as the signature flattens them; the flat outputs."""
        self._check(frames)
        # Outputs are ordinary tensors, and state made under inference_mode could not be written outside it.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self._turns.turn(),
            within_memory("a frame"),
        ):
            frames = [_on(frame, device) for frame, (_, _, device) in zip(frames, self._like, strict=True)]
            if _sizes(frames) != self._size:
                self._resize(frames)
            if self._interrupted:
                self._program.reset()
            self._interrupted = True  # stays so if the frame raises half-way
            outputs = self._program.run(frames)
            self._interrupted = False
            self._tally.add(self._program)
            if self._monitor is not None and self._monitor.due():
                with parts.dense_parts(self.graph):
                    self._monitor.look(self._program.plan, frames, outputs)
        return outputs

    @in_turn
    def reset(self, stream: int | None = None) -> None:
        """Forget the last frames, of one stream (its index in the batch) or of all: the next one is full."""
        if stream is not None:
            self._check_stream(stream)
        self._program.reset(slice(None) if stream is None else slice(stream, stream + 1))
        for part in self._parts.values():
            part.reset(stream)

    @in_turn
    def sleep(self, streams: Collection[int]) -> None:
        """Say that the images of `streams` (indices in the batch) are those of the frame before: nobody looks whether
        they changed, until it is said again, or a stream starts over or goes on from a snapshot. A gate learns
        nothing of them."""
        for stream in streams:
            self._check_stream(stream)
        self._program.sleep(streams)

    @in_turn
    def snapshot(self, stream: int = 0) -> bytes:
        """What `stream` (its index in the batch) has seen, for `restore` in this process or another.

        As large as the stream's share of the state; see deltaconvert.snapshot.
        """
        self._check_stream(stream)
        if self._interrupted:
            self._program.reset()
        return snapshot.pack(self._program, self._fingerprint, stream)

    @in_turn
    def restore(self, stream: int, taken: bytes) -> None:
        """Let `stream` go on from a snapshot: its next frame recomputes what changed since the snapshot's last one.

        InputError, with the state untouched, for a snapshot of another network, size or backend.
        """
        self._check_stream(stream)
        state = snapshot.unpack(self._program, self._fingerprint, taken)
        with torch.inference_mode(False), torch.no_grad():
            self._program.go_on_from([(stream, state)])

    @in_turn
    def take_over(self, other: DeltaModel) -> None:
        """Let the streams of `other`, which for_streams made this network from, go on here under their numbers.

        Where the two batch sizes are planned differently they start over: their next frame is full.
        """
        ours, theirs = self._program, other._program
        if other._interrupted or ours.forms() != theirs.forms():
            return
        with torch.inference_mode(False), torch.no_grad(), other._turns.turn():
            ours.go_on_from((stream, theirs.state_of(stream)) for stream in range(other.streams))

    @cached_property
    def _fingerprint(self) -> str:
        return snapshot.fingerprint(self.graph)

    def _blank(self, streams: int) -> list[Tensor]:
        return [
            torch.zeros(streams, *size[1:], dtype=dtype, device=device)
            for size, (_, dtype, device) in zip(self._size, self._like, strict=True)
        ]

    def _check_stream(self, stream: int) -> None:
        if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream < self.streams:
            raise InputError(
                f"there is no stream {stream!r}: the frames have {self.streams} (0 to {self.streams - 1})"
            )

    @in_turn
    def monitor(self, every: int = 100, *, tile: int = 64, seed: int = 0) -> None:
        """From now on compute a random tile of every `every`th frame again, dense, and keep the difference; 0 stops.

        stats().observed tells. tile: its side in pixels of the frame; where it lies follows from the seed. A look costs
        what the network takes on the part of the frame that the tile depends on, which may be all of it.
        """
        for name, value, least in (("every", every, 0), ("tile", tile, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"monitor: {name} is {value!r}: it is a number from {least}")
        self._monitor = Monitor(self.graph, every, tile, seed) if every else None
        if self._monitor is not None:
            with torch.inference_mode(False), torch.no_grad(), parts.dense_parts(self.graph):
                self._monitor.prepare(self._program.plan, self.blank_frames())

    @in_turn
    def stats(self) -> Stats:
        """What the frames so far changed and cost, node by node; see report.Stats."""
        found = self._tally.stats(self._program)
        if self._monitor is not None:
            found = replace(found, observed=self._monitor.observed())
        return parts.told(found, {path: part.stats() for path, part in self._parts.items()})

    def explain(self, speed: bool = False) -> Explanation:
        """One row for each node: delta or dense, why not and the way out, share of the work, state; print it.

        speed: also measure what to expect on this machine, for a few dense frames' time; a copy runs, not this network.
        """
        found = parts.explained(
            explain(self._program), {path: part.explain() for path, part in self._parts.items()}
        )
        if speed:
            from deltaconvert.speed import expected_speed

            return replace(found, speed=expected_speed(self))
        return found

    @property
    def state_bytes(self) -> int:
        """What is kept between frames, for all streams together."""
        return self._program.state_bytes() + sum(part.state_bytes for part in self._parts.values())

    @in_turn
    def input_masks(self) -> Tensor:
        """bool (N, H, W): the pixels of its first map among the inputs that changed in the last frame."""
        for node in self._program.plan.graph.graph.nodes:
            if node.target is sparsify:
                return self._program.edges[node.name].mask[:, 0].clone()
        return torch.ones(self.streams, *self._size[0][2:], dtype=torch.bool)  # nothing in it is a delta

    @in_turn
    def masks(self) -> Mapping[str, Tensor]:
        """The pixels that changed in the last frame, by path: bool (N, 1, H, W)."""
        nodes = self._program.plan.graph.graph.nodes
        own = {
            path_of(node): self._program.edges[node.name].mask.clone()
            for node in nodes
            if node.name in self._program.edges
        }
        return own | {path: mask for part in self._parts.values() for path, mask in part.masks().items()}

    def save(self, path: Any) -> None:
        """Write the converted network into one file that deltaconvert.load reads without the network's own code."""
        from deltaconvert.container import save

        save(self, path)

    def train(self, mode: bool = True) -> DeltaModel:
        if mode:
            raise DeltaConvertError(
                "a converted network cannot be trained: train the dense one and convert it again"
            )
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> DeltaModel:
        """What `to`, `half`, `cuda` and the like come to: nothing, or an error: plans are for a device and types."""
        own = {(value.dtype, value.device) for value in (*self.graph.parameters(), *self.graph.buffers())}
        for dtype, device in own | {(dtype, device) for _, dtype, device in self._like}:
            after = fn(torch.empty(0, dtype=dtype, device=device))
            if (after.dtype, after.device) != (dtype, device):
                raise DeltaConvertError(
                    f"a converted network stays on {device}, in its types: move or cast the dense one and convert it "
                    "again, or say where a saved one goes: deltaconvert.load(path, device=...)"
                )
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise DeltaConvertError(
            "a converted network takes no other weights: load them into the dense one and convert it again"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeltaConvertError(
            "a converted network cannot be pickled: save(path) writes it, deltaconvert.load(path) reads it"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> DeltaModel:
        """A network of its own with the same plans, which has seen no frame yet."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        run = ("_modules", "_program", "_tally", "_turns", "_plans", "_backend", "_interrupted", "_monitor")
        for name, value in vars(self).items():
            if name not in run and name not in vars(twin):
                setattr(twin, name, copy.copy(value))
        twin.graph = copy.deepcopy(self.graph, memo)
        twin._backend, twin._interrupted, twin._monitor = self._backend, False, None
        twin._plans = {size: Plan(copy.deepcopy(p.graph, memo), p.streams) for size, p in self._plans.items()}
        twin._turns = Turns(twin._like[0][2])
        with twin._turns.turn():
            twin._program, twin._tally = Program(twin._plans[twin._size], twin._backend), Tally()
        twin._enrol()
        return nn.Module.train(twin, False)

    def _check(self, frames: Sequence[Tensor]) -> None:
        for place, (frame, (dim, dtype, device)) in enumerate(zip(frames, self._like, strict=True)):
            if frame.dim() != dim:
                raise InputError(
                    f"input {place} has shape {tuple(frame.shape)}; the network was converted for {dim} dimensions"
                )
            if frame.dtype != dtype:
                raise InputError(
                    f"input {place} is {frame.dtype}; the network was converted for {dtype}: convert the frame "
                    f"(frame.to({dtype})) or convert the network again for {frame.dtype}"
                )
            if frame.device != device and frame.device.type != "cpu":
                raise InputError(f"input {place} is on {frame.device}; the network was converted on {device}")
            if frame.numel() == 0:
                raise InputError(f"input {place} is empty: its shape is {tuple(frame.shape)}")
        self._check_sizes(frames)
        batches = {frame.shape[0] for frame in frames if frame.dim() == 4}
        if len(batches) > 1:
            raise InputError(
                f"the inputs have batches of {sorted(batches)}: every stream needs one image in each"
            )

    def _check_sizes(self, frames: Sequence[Tensor]) -> None:
        if self.signature.sizes is not None and not self.signature.fits(_sizes(frames)):
            raise InputError(
                f"the inputs have shapes {_text(_sizes(frames))}; the network was captured for "
                f"{_text(self.signature.sizes)} alone: convert it once for each size"
            )

    def _resize(self, frames: Sequence[Tensor]) -> None:
        sizes = _sizes(frames)
        known = sizes in self._plans
        try:
            program = self._program_for(frames)
        except (DeltaConvertError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"the network cannot run on inputs of shape {_text(sizes)}: {first_line(error)}"
            ) from error
        if not known:
            warnings.warn(
                f"the input size changed from {_text(self._size)} to {_text(sizes)}: "
                "planned anew, the state starts over",
                stacklevel=6,
            )
        self._program, self._size = program, sizes

    def output_forms(self, sizes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each flat output for inputs of these sizes, which are planned for if they are new."""
        frames = [
            torch.zeros(size, dtype=dtype, device=device)
            for size, (_, dtype, device) in zip(sizes, self._like, strict=True)
        ]
        with torch.inference_mode(False), torch.no_grad(), self._turns.turn():
            self._check(frames)
            outputs: Any = self._plan_for(frames).graph.graph.output_node().args[0]
        return [(tuple(output.meta["shape"]), output.meta["dtype"]) for output in outputs]

    def _program_for(self, frames: Sequence[Tensor]) -> Program:
        """A program with fresh state."""
        program = Program(self._plan_for(frames), self._backend, self._settled)
        self._tally = Tally()
        return program

    def _plan_for(self, frames: Sequence[Tensor]) -> Plan:
        """Made once for a size."""
        sizes = _sizes(frames)
        if sizes not in self._plans:
            with parts.dense_parts(self.graph):
                self._plans[sizes] = plan(
                    self.graph, frames, self._thresholds, self.keep_dense, self._backend.PASSES
                )
            if len(self._plans) == 1:
                # Relative thresholds refer to the example frame, whatever size comes later.
                nodes = self._plans[sizes].graph.graph.nodes
                placed = [pair for node in nodes for pair in node.meta.get("placed", ())]
                self._thresholds = self._thresholds.resolved(placed)
        return self._plans[sizes]


def _path(node: fx.Node) -> str:
    return node.meta.get("path", node.name)


def _on(frame: Tensor, device: torch.device) -> Tensor:
    """A frame from host memory on the device; torch keeps the pinned copy until it was read."""
    return frame if frame.device == device else frame.pin_memory().to(device, non_blocking=True)


def _sizes(frames: Sequence[Tensor]) -> Sizes:
    return tuple(tuple(frame.shape) for frame in frames)


def _text(sizes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("x".join("N" if n is None else str(n) for n in size) for size in sizes)
