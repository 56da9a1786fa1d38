"""lower: bind every node of a plan to a backend. What comes out runs frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deltaconvert.backends.base import Backend, Map
from deltaconvert.errors import DeltaConvertError
from deltaconvert.gate import Watch
from deltaconvert.islands import Frame, Island, Step, is_pure, is_read_behind
from deltaconvert.narrow import reaches_of
from deltaconvert.nodes import attribute_of, densify, is_delta, operator_of, path_of, sparsify
from deltaconvert.passes.loose import is_foreign
from deltaconvert.passes.place_thresholds import is_of_frame
from deltaconvert.plan import Plan
from deltaconvert.signature import tensors_of


class Program:
    """A planned network with its state: run(frames) -> outputs, which are lent, reset(streams).

    Dense values live in a list for the time of a frame; deltas live in their edges between frames.
    """

    def __init__(self, plan: Plan, backend: ModuleType, settled: dict[Any, Any] | None = None):
        """settled: what programs of the same network found by measuring; what this one finds is added."""
        self.plan = plan
        self._backend: Backend = backend.Backend(settled)
        self._notes = backend.NAME
        self.edges: dict[str, Any] = {}  # node name -> edge
        self.watches: dict[str, Watch] = {}  # sparsify's name -> the gate at work on it
        self._slots: dict[fx.Node, int] = {}
        self._inputs: list[int] = []
        self._outputs: list[Callable[[list[Any]], Any]] = []
        self._through: list[bool] = []  # of each output, whether it is an input or no tensor at all
        self._steps: list[Step] = []
        self.islands: dict[str, Island] = {}  # dense node name -> its step
        self.operators: list[Any] = []  # the backend's steps
        self._frame_edges: list[Any] = []  # edges of frames, or of frames that were only cast or permuted
        for node in plan.graph.graph.nodes:
            self._bind(node)

    def run(self, frames: Sequence[Tensor]) -> list[Any]:
        """The flat outputs. They may be state, which the next frame overwrites and nobody else may write to; see
        `own`."""
        frame = Frame([None] * len(self._slots), [True] * len(self._slots))
        for slot, tensor in zip(self._inputs, frames, strict=True):
            frame.values[slot] = tensor
        self._backend.play(self._steps, frame)
        return [output(frame.values) for output in self._outputs]

    def own(self, lent: Sequence[Any]) -> list[Any]:
        """Copies of what `run` lent, for the caller to keep. Frames that the network only hands through are not
        copied."""
        return [
            value if through else _copy(value) for value, through in zip(lent, self._through, strict=True)
        ]

    def count(self) -> Tensor:
        """Called once a frame. int64 (2, edges, 2): the pixels computed and changed, in this frame and in all so
        far."""
        return self._backend.count(list(self.edges.values()))

    def nonfinite(self) -> list[int]:
        """The pixels of each stream's frames that were stored with NaN or infinity so far. It waits for the device."""
        counts = [edge.nonfinite.tolist() for edge in self._frame_edges]
        return [sum(of_stream) for of_stream in zip(*counts, strict=True)] or [0] * self.plan.streams

    def reset(self, streams: slice = slice(None)) -> None:
        """Forget what `streams` have seen: their next frame is computed in full. All streams wake."""
        self.sleep(())
        for edge in self.edges.values():
            edge.reset(streams)
        for watch in self.watches.values():
            watch.reset(streams)
        for island in self.islands.values():
            island.forget()

    def sleep(self, streams: Collection[int]) -> None:
        """Until the next call, the images of `streams` are those of the frame before and need not be compared."""
        for edge in self._frame_edges:
            edge.sleep(streams)

    def forms(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """The form of a stream's state: dtype and (C, H, W) of each edge."""
        return {name: (edge.values.dtype, edge.values.shape[1:]) for name, edge in self._kept_edges()}

    def state_of(self, stream: int) -> dict[str, Tensor]:
        """The state of `stream`: the values of each edge, C H W."""
        return {name: edge.values[stream].clone() for name, edge in self._kept_edges()}

    def go_on_from(self, states: Iterable[tuple[int, Mapping[str, Tensor]]]) -> None:
        """Let streams go on from states that `state_of` took, here or in a program with the same edges; all wake."""
        self.sleep(())
        for stream, state in states:
            for name, edge in self._kept_edges():
                edge.put(stream, state[name])
            for watch in self.watches.values():  # learnt noise is not part of a state
                watch.reset(slice(stream, stream + 1))
        for step in self.operators:
            step.rebuild()
        for island in self.islands.values():
            island.forget()

    def _kept_edges(self) -> list[tuple[str, Any]]:
        """Edges whose maps the next frame needs."""
        return [(name, edge) for name, edge in self.edges.items() if edge.is_kept]

    @property
    def outside(self) -> dict[str, str]:
        """Nodes that do not run as part of a frame's CUDA graph, and why; empty on other backends."""
        return self._backend.outside

    @property
    def still(self) -> str | None:
        """What a still frame skips of its CUDA graph, or why nothing; known after the first frame."""
        return self._backend.still

    @property
    def buffers(self) -> list[Tensor] | None:
        """The memory that every frame is read from; empty before the first one; None where there is none."""
        found = self._backend.buffers
        return None if found is None else [found[slot] for slot in self._inputs if slot in found]

    def state_bytes(self) -> int:
        return sum(part.state_bytes() for part in (*self.edges.values(), *self.watches.values()))

    def _bind(self, node: fx.Node) -> None:
        if node.op == "output":
            sizes = node.meta.get("sizes", ())
            self._bind_outputs([torch.Size(o) if i in sizes else o for i, o in enumerate(node.args[0])])
        elif node.op == "placeholder":
            self._inputs.append(self._slot(node))
        elif node.op == "get_attr":
            value, slot = attribute_of(node), self._slot(node)
            self._steps.append(Step(node, lambda frame: frame.put(slot, value, False)))
        elif node.target is sparsify:
            self._bind_sparsify(node)
        elif node.target is densify:
            edge, slot = self.edges[node.args[0].name], self._slot(node)
            self._add_island(node, Island(slot, lambda values: edge.dense(), (), pure=True, edge=edge))
        elif is_delta(node):
            self._bind_operator(node)
        elif not self._is_cast_on_the_way(node):
            self._bind_island(node)

    def _bind_sparsify(self, node: fx.Node) -> None:
        meta = node.meta
        kept = _map_of(meta)
        watch = None
        if "gate" in meta:
            assert kept.threshold is not None
            watch = Watch(meta["gate"], kept.shape, kept.dtype, kept.device, kept.threshold)
            self.watches[node.name] = watch
        self.edges[node.name] = edge = self._backend.sparsify(kept, watch)
        (dense,) = node.args
        if is_of_frame(dense):
            self._frame_edges.append(edge)
        source = self._slots[dense.args[0] if self._is_cast_on_the_way(dense) else dense]
        self._steps.append(Step(node, lambda frame: edge.run(frame.values[source]), edge=edge))

    def _is_cast_on_the_way(self, node: fx.Node) -> bool:
        """A cast of bytes to floats that only a sparsify reads, which can cast itself: x.float() / 255 of a camera."""
        operator = operator_of(node)
        if not self._backend.takes_bytes or getattr(operator, "function", None) != "cast":
            return False
        (source,), users = node.all_input_nodes, list(node.users)
        floats = node.meta["dtype"].is_floating_point and source.meta["dtype"] == torch.uint8
        return bool(floats and all(user.target is sparsify for user in users))

    def _bind_operator(self, node: fx.Node) -> None:
        operator, meta = operator_of(node), node.meta
        assert operator is not None
        step = self._backend.step(
            operator,
            reaches_of(node),
            [self.edges[source.name] for source in node.args],
            _map_of(meta),
            meta.setdefault(self._notes, {}),
        )
        self.edges[node.name] = step.edge
        self.operators.append(step)
        self._steps.append(Step(node, lambda frame: step.run()))

    def _bind_island(self, node: fx.Node) -> None:
        """The network's own code may write to what it is given, in frames to come if not on the example. What others
        keep it gets a copy of."""
        foreign = is_foreign(node)
        copied = {source for source in node.all_input_nodes if _is_copied(source, node, foreign)}
        shows = foreign and not node.meta.get("writes_inputs") and is_read_behind(node)

        def call(values: list[Any]) -> Any:
            copies = {source: _copy(values[self._slots[source]]) for source in copied}

            def given(source: fx.Node) -> Any:
                return copies[source] if source in copies else values[self._slots[source]]

            result = run(*fx.map_arg((node.args, node.kwargs), given))
            if shows and any(copy._version for copy in tensors_of(list(copies.values()))):
                raise DeltaConvertError(
                    f"{path_of(node)} writes to its input in this frame, which it did not on the example, and others "
                    "read that behind it: convert on an example where it does, or let it write to a copy"
                )
            return result

        def run(args: Any, kwargs: Any) -> Any:
            if node.op == "call_module":
                return self.plan.graph.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        sources = tuple(self._slots[source] for source in node.all_input_nodes)
        self._add_island(node, Island(self._slot(node), call, sources, pure=is_pure(node)))

    def _add_island(self, node: fx.Node, island: Island) -> None:
        self.islands[node.name] = island
        self._steps.append(Step(node, island.run, island))

    def _bind_outputs(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            self._outputs.append(self._output(output))
            self._through.append(not isinstance(output, fx.Node) or output.op == "placeholder")

    def _output(self, output: Any) -> Callable[[list[Any]], Any]:
        if not isinstance(output, fx.Node):  # it follows from the input's size: x.shape[2]
            return lambda values: output
        slot = self._slots[output]
        return lambda values: values[slot]

    def _slot(self, node: fx.Node) -> int:
        return self._slots.setdefault(node, len(self._slots))


def _map_of(meta: dict[str, Any]) -> Map:
    return Map(meta["shape"], meta["dtype"], meta["device"], threshold_of(meta))


def threshold_of(meta: dict[str, Any]) -> Any:
    """What a step compares with: nothing (None), a number, or (C), one for each channel.

    The number is rounded to the map's type: torch does so where it compares a number with a map on a CPU, a kernel does
    not.
    """
    amount = meta.get("threshold")
    if amount is None:
        return None
    if "shares" in meta:
        return (amount * meta["shares"]).to(meta["device"], meta["dtype"])
    return torch.tensor(amount, dtype=torch.float64).to(meta["dtype"]).item()


def _is_copied(source: fx.Node, node: fx.Node, foreign: bool) -> bool:
    """Before `node` reads it; `foreign`: it is the network's own code. Frames and weights are the caller's, and stay
    what they are where the example shows no write to them."""
    return bool(node.meta.get("writes_inputs")) or (foreign and source.op not in ("placeholder", "get_attr"))


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else pytree.tree_map_only(Tensor, torch.clone, value)
