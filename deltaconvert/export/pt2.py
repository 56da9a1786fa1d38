"""A planned network as a program of torch.export; see docs/export.md for its call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.errors import ExportError
from deltaconvert.export.planned import Planned, planned
from deltaconvert.library import register
from deltaconvert.library.described import describe
from deltaconvert.narrow import narrow_inputs
from deltaconvert.nodes import attribute_of, densify, is_delta, names_of, operator_of, sparsify
from deltaconvert.ops.fused import head_of
from deltaconvert.tracing.capture import ONE_AT_A_TIME

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel

METADATA = "deltaconvert.json"  # among the file's extra files


def write(delta: DeltaModel, path: Path) -> None:
    program, facts = program_of(delta)
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(facts)})


def program_of(delta: DeltaModel) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """The program, for the CPU, and what a runner needs to know of it."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        found = planned(delta, "a .pt2")
        frames, states = list(found.names.frames.items()), list(found.names.states.values())
        inputs: dict[str, Any] = {
            _keyword(name): torch.zeros(node.meta["shape"], dtype=node.meta["dtype"]) for node, name in frames
        }
        inputs["everything_changed"] = torch.ones(found.plan.streams, dtype=torch.bool)
        inputs["state"] = {
            each.name: torch.zeros(each.shape, dtype=each.node.meta["dtype"]) for each in states
        }
        frame = Frame(in_operators(found), delta.signature.unflatten)
        try:
            with ONE_AT_A_TIME:
                program = torch.export.export(frame, (), inputs, strict=False)
        except Exception as error:
            raise ExportError(f"torch.export cannot write the network: {error}") from error
    program.example_inputs = None  # they would take as much room as the state
    facts = {
        "streams": found.plan.streams,
        "frames": [_described(_keyword(name), node, node.meta["shape"]) for node, name in frames],
        "states": [
            _described(each.name, each.node, each.shape)
            | {"node": names_of(each.node)[0], "layout": "NHWC", "threshold": each.node.meta.get("threshold")}
            for each in states
        ],
    }
    return program, found.facts | facts


def _keyword(name: str) -> str:
    """frame.0 -> frame_0"""
    return name.replace(".", "_")


def _described(name: str, node: fx.Node, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": str(node.meta["dtype"]).removeprefix("torch.")}


class Frame(nn.Module):
    """(frame, everything_changed, state) -> the network's outputs. state: the stored maps, by name."""

    def __init__(self, network: fx.GraphModule, nested: Callable[[Sequence[Any]], Any]):
        super().__init__()
        self.network, self._nested = network, nested

    def forward(self, **inputs: Any) -> Any:
        state = inputs.pop("state")
        return self._nested(self.network(*inputs.values(), *state.values()))


def in_operators(found: Planned) -> fx.GraphModule:
    """Deltas become operators of torch, which bring the stored maps up to date in place.

    before: frame -> sparsify -> conv1 -> densify -> output

    after:  forget([input_0, conv1], everything_changed)
            mask_0 = sparsify(frame, input_0, 0.0, None)
            mask_1 = Conv2d([input_0], [mask_0], conv1, [weight, bias], "...", "conv1", None, None)
            output = conv1.permute(0, 3, 1, 2).clone()

    The placeholders are (*frames, everything_changed, *stored maps N H W C).
    """
    register()  # with the operators that were added since deltaconvert.library was imported
    return _Writer(found).write()


class _Writer:
    def __init__(self, found: Planned):
        self.plan, self.names, self.graph = found.plan.graph, found.names, fx.Graph()
        self.root: dict[str, Any] = {}  # what the graph reads, by name
        self.values: dict[fx.Node, Any] = {}  # of dense nodes; of deltas the mask
        self.stored: dict[fx.Node, fx.Node] = {}

    def write(self) -> fx.GraphModule:
        graph, nodes = self.graph, list(self.plan.graph.nodes)
        for node in self.names.frames:
            self.values[node] = graph.placeholder(node.name)
        everything = graph.placeholder("everything_changed")
        for node in self.names.states:
            self.stored[node] = graph.placeholder(f"stored_{node.name}")
        graph.call_function(torch.ops.deltaconvert.forget.default, (list(self.stored.values()), everything))
        for node in nodes:
            if node.op not in ("placeholder", "output"):
                self.values[node] = self._value(node)
        graph.output(fx.map_arg(nodes[-1].args[0], self.values.__getitem__))
        return fx.GraphModule(self.root, graph)

    def _value(self, node: fx.Node) -> Any:
        if node.target is sparsify:
            return self._sparsify(node)
        if node.target is densify:
            return self._densify(node)
        if is_delta(node):
            return self._operator(node)
        if node.op == "get_attr":
            return self._kept(str(node.target), attribute_of(node))
        if node.op == "call_module":
            self.root[str(node.target)] = self.plan.get_submodule(str(node.target))
        copied = self.graph.node_copy(node, self.values.__getitem__)
        if node.meta.get("writes_inputs"):  # not to what others read
            with self.graph.inserting_before(copied):
                for source in copied.all_input_nodes:
                    copied.replace_input_with(source, self.graph.call_method("clone", (source,)))
        return copied

    def _sparsify(self, node: fx.Node) -> fx.Node:
        given = (self.values[node.args[0]], self.stored[node], *self._threshold(node))
        return self.graph.call_function(torch.ops.deltaconvert.sparsify.default, given)

    def _densify(self, node: fx.Node) -> fx.Node:
        values = self.graph.call_method("permute", (self.stored[node.args[0]], 0, 3, 1, 2))
        return self.graph.call_method("clone", (values,), {"memory_format": torch.contiguous_format})

    def _operator(self, node: fx.Node) -> fx.Node:
        operator = operator_of(node)
        assert operator is not None
        text, weights = describe(operator, narrow_inputs(node))
        name = self.names.states[node].name
        kept = [self._kept(f"{name}.{key}", weight) for key, weight in weights.items()]
        maps, masks = ([held[source] for source in node.args] for held in (self.stored, self.values))
        given = (maps, masks, self.stored[node], kept, text, names_of(node)[0], *self._threshold(node))
        target = getattr(torch.ops.deltaconvert, type(head_of(operator)).__name__).default
        return self.graph.call_function(target, given)

    def _threshold(self, node: fx.Node) -> tuple[float | None, fx.Node | None]:
        """The largest change that is dropped, and each channel's share of it."""
        threshold, shares = node.meta.get("threshold"), node.meta.get("shares")
        if shares is not None:
            shares = self._kept(f"{self.names.states[node].name}.shares", shares.to(node.meta["dtype"]))
        return None if threshold is None else float(threshold), shares

    def _kept(self, name: str, tensor: Tensor) -> fx.Node:
        part = tensor.nbytes < tensor.untyped_storage().nbytes()  # torch's writer is not sure of such
        self.root[name] = tensor.clone() if part else tensor
        return self.graph.get_attr(name)
