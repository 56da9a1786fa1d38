"""A planned network as one ONNX graph: (frames, everything_changed, *states) -> (outputs, *states).

    mask = changed(frame, stored frame)
    if the share of changed blocks is above the crossover: the dense network, whose maps become the states
    else:                                                  each operator's sparse function on its list of candidates

Two branches and not one choice for each operator: the dense network as a whole keeps its maps in the runtime's own
layout, where a choice for each would bring every map into it and back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import fx

from deltaconvert.check import densify, is_delta, names_of, operator_of, sparsify
from deltaconvert.errors import ExportError
from deltaconvert.export import masks
from deltaconvert.export.crossover import BLOCK, crossover
from deltaconvert.export.graph import DOMAIN, OPSETS, TYPES, Body, Branch, Scope
from deltaconvert.export.islands import Islands
from deltaconvert.export.names import Names
from deltaconvert.export.ops import spell, why_not
from deltaconvert.export.sparse import Call, kind_of
from deltaconvert.lower import _attribute, threshold_of
from deltaconvert.ops.fused import stages_of
from deltaconvert.plan import Plan

IR_VERSION = 10
EVERY = "everything_changed"


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
            for name, node in zip(names.outputs, self._outputs(), strict=True)
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
                self.values[node] = self.main.constant(_attribute(self.plan.graph, str(node.target)))
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

    def _outputs(self) -> list[fx.Node]:
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


class _Writer:
    """One branch: values by node, in the order of the graph."""

    def __init__(self, network: Network):
        self.network, self.names = network, network.names
        self.g: Branch = network.main.branch()
        self.values: dict[fx.Node, str] = dict(network.values)  # dense ones, as the network has them
        self.states: dict[fx.Node, str] = {}

    def write(self) -> Branch:
        network, names = self.network, self.names
        pending: list[fx.Node] = []
        for node in network.nodes:
            if node.op == "output" or node in self.values:
                continue
            if node.target is densify:
                self._densify(node)
            elif node.target is sparsify:
                pending = self._flush(pending)
                self._sparsify(node)
            elif is_delta(node):
                self._operator(node)
            else:
                pending.append(node)
        self._flush(pending)
        for node in network._outputs():
            # A branch may not hand out what is not its own.
            self.g.result(self.g.Identity(self.values[node]), node.meta["dtype"], node.meta["shape"])
        for node, state in names.states.items():
            self.g.result(self.states[node], node.meta["dtype"], state.shape)
        return self.g

    def _flush(self, pending: list[fx.Node]) -> list[fx.Node]:
        if pending:
            self.network.islands.write(self.g, pending, self.values)
        return []

    def _densify(self, node: fx.Node) -> None:
        raise NotImplementedError

    def _sparsify(self, node: fx.Node) -> None:
        raise NotImplementedError

    def _operator(self, node: fx.Node) -> None:
        raise NotImplementedError


class DenseBranch(_Writer):
    """Maps are N C H W; where a threshold stands, what did not move by more keeps its stored value."""

    def _densify(self, node: fx.Node) -> None:
        self.values[node] = self.values[node.args[0]]

    def _sparsify(self, node: fx.Node) -> None:
        self._store(node, self.values[node.args[0]], self.network.masks.get(node))

    def _operator(self, node: fx.Node) -> None:
        operator = operator_of(node)
        self.g.shape = node.args[0].meta["shape"]
        self._store(node, spell(self.g, operator, *(self.values[source] for source in node.args)), None)

    def _store(self, node: fx.Node, value: str, mask: str | None) -> None:
        g, state = self.g, self.names.states[node]
        if node.meta.get("threshold"):
            stored = g.Transpose(state.input, perm=[0, 3, 1, 2])
            mask = mask or self.network.changed(g, node, value)
            value = g.Where(g.Greater(mask, 0.5), value, stored)
        self.values[node] = value
        self.states[node] = g.Transpose(value, perm=[0, 2, 3, 1])


class SparseBranch(_Writer):
    """Maps are N H W C, stored; masks and lists belong to the frame."""

    def __init__(self, network: Network):
        super().__init__(network)
        self.masks: dict[fx.Node, str] = dict(network.masks)
        self.spreads: dict[Any, str] = {}
        self.lists: dict[Any, str] = {}

    def _densify(self, node: fx.Node) -> None:
        self.values[node] = self.g.Transpose(self.states[node.args[0]], perm=[0, 3, 1, 2])

    def _sparsify(self, node: fx.Node) -> None:
        g, network, state = self.g, self.network, self.names.states[node]
        frame = self.values[node.args[0]]
        if node not in self.masks:
            self.masks[node] = network.changed(g, node, frame)
        where = self._list(self.masks[node], node.meta["shape"], None)
        body = Body(["frame", "pixels", "stored"])
        rows = body.GatherND(body.Transpose("frame", perm=[0, 2, 3, 1]), "pixels")
        stored = body.ScatterND("stored", "pixels", rows)
        (self.states[node],) = network.function(g, "Store", body, [stored], [frame, where, state.input])

    def _operator(self, node: fx.Node) -> None:
        g, meta, state = self.g, node.meta, self.names.states[node]
        operator = operator_of(node)
        assert operator is not None
        shapes = [source.meta["shape"] for source in node.args]
        reaches = operator.reaches(shapes, meta["shape"])
        call = Call(operator, reaches, shapes, meta["shape"], threshold_of(meta))
        kind = kind_of(call)
        candidates = self._candidates(node, reaches)
        where = self._list(candidates, meta["shape"], kind.tile) if kind.listed else candidates
        maps = [f"x{place}" for place in range(len(shapes))]
        body = Body([*maps, "candidates", "list", "stored", "every"])
        results = kind.body(body, maps, "candidates", "list", "stored", "every")
        given = [*(self.states[source] for source in node.args), candidates, where, state.input, EVERY]
        name = "_".join(type(stage).__name__ for stage in stages_of(operator)[:1])
        described = json.dumps([_described(stage) for stage in stages_of(operator)])
        options = {
            "operator": described,
            "threshold": float(meta.get("threshold", 0.0)),
            "node": names_of(node)[0],
        }
        found = self.network.function(g, name, body, results, given, **options)
        self.states[node] = found[0]
        self.masks[node] = candidates if len(found) == 1 else found[1]

    def _candidates(self, node: fx.Node, reaches: Sequence[Any]) -> str:
        sources = list(zip(reaches, node.args, strict=True))
        given = list(dict.fromkeys(self.masks[source] for source in node.args))
        if len(given) == 1 and all(isinstance(reach, masks.Pixel) for reach in reaches):
            return given[0]
        body = Body([f"mask{place}" for place in range(len(given))])
        inputs = dict(zip(given, body.inputs, strict=True))
        found = list(
            dict.fromkeys(
                masks.spread(body, reach, inputs[self.masks[source]], node.meta["shape"])
                for reach, source in sources
            )
        )
        result = found[0] if len(found) == 1 else body.Max(*found)
        if result in body.inputs:
            return given[body.inputs.index(result)]
        key = (tuple(given), b"".join(each.SerializeToString(deterministic=True) for each in body.nodes))
        if key not in self.spreads:
            (self.spreads[key],) = self.network.function(self.g, "Spread", body, [result], given)
        return self.spreads[key]

    def _list(self, mask: str, size: Sequence[int], tile: tuple[int, int] | None) -> str:
        key = (mask, tile)
        if key not in self.lists:
            body = Body(["mask"])
            size = tuple(size)
            if tile is None:
                name, found = "Pixels", masks.pixels(body, "mask", size)
            else:
                name, found = "Corners", masks.corners(body, "mask", size, tile)
            (self.lists[key],) = self.network.function(self.g, name, body, [found], [mask])
        return self.lists[key]


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


def _described(stage: Any) -> dict[str, Any]:
    """An operator and its settings but for its weights: what a runtime that replaces the function goes by."""
    settings = {key: value for key, value in stage.settings().items() if not isinstance(value, torch.Tensor)}
    return {"type": type(stage).__name__, **json.loads(json.dumps(settings, default=str))}


def _info(name: str, dtype: torch.dtype, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype], list(shape))
