"""Dense islands in ONNX: operators that are spelled here, everything else as torch's own exporter writes it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import inliner
from torch import fx

from deltaconvert.errors import ExportError
from deltaconvert.export.graph import DOMAIN, OPSET, Body, Scope
from deltaconvert.export.ops import spell, why_not
from deltaconvert.nodes import names_of, operator_of
from deltaconvert.ops.arithmetic import Elementwise
from deltaconvert.tracing.capture import ONE_AT_A_TIME


class Islands:
    """Writes runs of dense nodes; each run is exported once and called in both branches."""

    def __init__(self, gm: fx.GraphModule, function: Callable[..., str]):
        self.gm, self.function = gm, function
        self._known: dict[tuple[fx.Node, ...], tuple[str, list[Any]]] = {}

    def write(self, g: Scope, nodes: Sequence[fx.Node], values: dict[fx.Node, str]) -> None:
        """Add the results of `nodes`, which follow one another, to `values`."""
        if all(self._is_spelled(node) for node in nodes):
            for node in nodes:
                g.shape = node.args[0].meta["shape"]
                values[node] = spell(g, operator_of(node), *(values[source] for source in node.args))
            return
        read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
        inputs = [source for source in read if source not in nodes]
        outputs = [node for node in nodes if any(user not in nodes for user in node.users)]
        key = tuple(nodes)
        if key not in self._known:
            self._known[key] = self._exported(nodes, inputs, outputs)
        name, weights = self._known[key]
        given = [*(values[source] for source in inputs), *(g.constant(weight) for weight in weights)]
        found = g.call(name, *given, outputs=len(outputs), domain=DOMAIN)
        values.update(zip(outputs, [found] if len(outputs) == 1 else found, strict=True))

    def _is_spelled(self, node: fx.Node) -> bool:
        operator = operator_of(node)
        if operator is None or (isinstance(operator, Elementwise) and not _reads_floats(node)):
            return False
        return why_not(operator, [each.meta["shape"] for each in node.args]) is None

    def _exported(
        self, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> tuple[str, list[Any]]:
        """(function, its weights)."""
        graph, copies = fx.Graph(), {}
        for source in inputs:
            copies[source] = graph.placeholder(source.name)
        for node in nodes:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
        graph.output(tuple(copies[node] for node in outputs))
        for source in inputs:
            refuse_loose(source)
        island = fx.GraphModule(self.gm, graph)
        examples = tuple(torch.zeros(source.meta["shape"], dtype=source.meta["dtype"]) for source in inputs)
        model = _by_torch(island, examples, names_of(nodes[0])[0])
        body = Body([value.name for value in model.graph.input])
        weights = []
        for tensor in model.graph.initializer:
            body.inputs.append(tensor.name)
            weights.append(onnx.numpy_helper.to_array(tensor))
        body.nodes = list(model.graph.node)
        return self.function("Island", body, [value.name for value in model.graph.output]), weights


def _reads_floats(node: fx.Node) -> bool:
    """ONNX's arithmetic takes values of one type, torch's of several."""
    return all(source.meta["dtype"].is_floating_point for source in node.all_input_nodes)


def refuse_loose(node: fx.Node) -> None:
    """The two branches of a network hand on tensors of one size."""
    if "shape" not in node.meta:
        raise ExportError(
            f"{names_of(node)[0]}: its size follows from values, which cannot be written in ONNX: end the network "
            "before it, convert(model.backbone, ...), and do it on outputs"
        )


def _by_torch(island: fx.GraphModule, examples: tuple[Any, ...], path: str) -> onnx.ModelProto:
    file = io.BytesIO()
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(island, examples, dynamo=True, verbose=False, opset_version=OPSET)
        program.save(file)
    except Exception as error:
        raise ExportError(
            f"the dense part from {path} on cannot be written in ONNX: {error}. Convert the network without it"
        ) from error
    return inliner.inline_local_functions(onnx.load_from_string(file.getvalue()))
