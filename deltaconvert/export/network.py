"""A planned network as one ONNX graph: (frames, everything_changed, *states) -> (outputs, *states).

    mask = changed(frame, stored frame)
    if the share of changed blocks is above the crossover: the dense network, whose maps become the states
    else:                                                  each operator's sparse function on its list of candidates

Two branches and not one choice for each operator: the dense network as a whole keeps its maps in the runtime's own
layout, where a choice for each would bring every map into it and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import fx

from deltaconvert.errors import ExportError
from deltaconvert.export import masks
from deltaconvert.export.branches import DenseBranch, SparseBranch
from deltaconvert.export.crossover import BLOCK, crossover
from deltaconvert.export.graph import DOMAIN, EVERY, OPSETS, TYPES, Body, Scope
from deltaconvert.export.islands import Islands, refuse_loose
from deltaconvert.export.names import Names
from deltaconvert.export.ops import why_not
from deltaconvert.lower import threshold_of
from deltaconvert.nodes import attribute_of, densify, is_delta, names_of, operator_of, sparsify
from deltaconvert.plan import Plan

IR_VERSION = 10


class Network:
    """Writes the graph of one plan."""

    def __init__(self, plan: Plan, names: Names, dense_above: float | None = None):
        self.plan, self.names = plan, names
        self.nodes = list(plan.graph.graph.nodes)
        self.functions: dict[bytes, onnx.FunctionProto] = {}
        self.islands = Islands(plan.graph, self._function)
        self.main = Scope()
        self.values: dict[fx.Node, str] = dict(names.frames)  # dense ones before the choice
        self.masks: dict[fx.Node, str] = {}  # of frames: they are compared before it
        for node in self.nodes:
            _refuse_unspelled(node)
        for node in self.outputs():
            refuse_loose(node)
        self.crossover = crossover(plan) if dense_above is None else float(dense_above)

    def proto(self, metadata: dict[str, str]) -> onnx.ModelProto:
        names, main = self.names, self.main
        shares = self._look_at_frames()
        # Without a frame that is compared there is nothing to save.
        most = main.Max(*shares) if len(shares) > 1 else shares[0] if shares else main.constant(2.0)
        results = [*names.outputs, *(state.output for state in names.states.values())]
        dense, sparse = DenseBranch(self), SparseBranch(self)
        main.choose(main.Greater(most, self.crossover), dense.write(), sparse.write(), results)
        inputs = [_info(name, node.meta["dtype"], node.meta["shape"]) for node, name in names.frames.items()]
        inputs.append(_info(EVERY, torch.bool, [self.plan.streams]))
        outputs = [
            _info(name, node.meta["dtype"], node.meta["shape"])
            for name, node in zip(names.outputs, self.outputs(), strict=True)
        ]
        for state in names.states.values():
            inputs.append(_info(state.input, state.node.meta["dtype"], state.shape))
            outputs.append(_info(state.output, state.node.meta["dtype"], state.shape))
        graph = helper.make_graph(main.nodes, "delta_network", inputs, outputs, list(main.constants.values()))
        model = helper.make_model(
            graph,
            functions=list(self.functions.values()),
            opset_imports=OPSETS,
            ir_version=IR_VERSION,
            producer_name="deltaconvert",
        )
        helper.set_model_props(model, metadata | {"deltaconvert.crossover": repr(self.crossover)})
        return model

    def _look_at_frames(self) -> list[str]:
        """Before the choice: what lies before the first delta nodes, masks of frames, the share that each changed."""
        shares: list[str] = []
        early, pending = set(self.values), list[fx.Node]()
        for node in self.nodes:
            if node.op == "get_attr":
                self.values[node] = self.main.constant(attribute_of(node))
                early.add(node)
            elif node.target is sparsify and node.args[0] in early:
                if pending:
                    self.islands.write(self.main, pending, self.values)
                    pending = []
                self.masks[node] = self.changed(self.main, node, self.values[node.args[0]])
                shares.append(masks.share(self.main, self.masks[node], node.meta["shape"], BLOCK))
            elif _is_island(node) and early.issuperset(node.all_input_nodes):
                early.add(node)
                pending.append(node)
        return shares

    def outputs(self) -> list[fx.Node]:
        return [node for node in self.nodes[-1].args[0] if isinstance(node, fx.Node)]

    def changed(self, g: Scope, node: fx.Node, new: str) -> str:
        """The mask of a map N C H W against what is stored of it."""
        body = Body(["new", "stored", "every"])
        threshold = threshold_of(node.meta)
        mask = masks.changed(body, "new", "stored", "every", threshold, node.meta["shape"])
        given = [new, self.names.states[node].input, EVERY]
        return self.function(g, "Changed", body, [mask], given, threshold=float(node.meta["threshold"]))[0]

    def function(
        self, g: Scope, name: str, body: Body, results: Sequence[str], given: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Call a function of this body with those of `given` that it reads; equal bodies are one function."""
        read = _read(body)
        given = [value for value, own in zip(given, body.inputs, strict=False) if own in read]
        body.inputs = [own for own in body.inputs if own in read]
        weights = [g.weight(weight) for weight in body.weights]
        named = self._function(name, body, results, sorted(attributes))
        found = g.call(named, *given, *weights, outputs=len(results), domain=DOMAIN, **attributes)
        return [found] if len(results) == 1 else list(found)

    def _function(self, name: str, body: Body, results: Sequence[str], attributes: Sequence[str] = ()) -> str:
        proto = helper.make_function(
            DOMAIN, name, body.inputs, list(results), body.nodes, OPSETS[:1], attributes=list(attributes)
        )
        key = proto.SerializeToString(deterministic=True)
        if key not in self.functions:
            proto.name = f"{name}_{len(self.functions)}"
            self.functions[key] = proto
        return self.functions[key].name


def _is_island(node: fx.Node) -> bool:
    return node.op not in ("placeholder", "output") and node.target is not densify and not is_delta(node)


def _refuse_unspelled(node: fx.Node) -> None:
    operator = operator_of(node) if node.meta.get("delta") else None
    missing = operator and why_not(operator, [source.meta["shape"] for source in node.args])
    if missing:
        path = names_of(node)[0]
        raise ExportError(
            f"{path}: deltaconvert cannot write its operator in ONNX ({missing}). Keep it dense when converting, "
            f"keep_dense=[{path!r}], and torch's exporter writes it"
        )


def _read(body: Body) -> set[str]:
    found: set[str] = set()

    def walk(nodes: Any) -> None:
        for node in nodes:
            found.update(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    walk(attribute.g.node)

    walk(body.nodes)
    return found


def _info(name: str, dtype: torch.dtype, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype], list(shape))
