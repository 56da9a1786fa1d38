"""The two branches of an exported network: all of every map, or the candidates alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from deltaconvert.export import masks
from deltaconvert.export.graph import EVERY, Body, Branch
from deltaconvert.export.ops import spell
from deltaconvert.export.sparse import Call, kind_of
from deltaconvert.lower import threshold_of
from deltaconvert.narrow import reaches_of
from deltaconvert.nodes import densify, is_delta, names_of, operator_of, sparsify
from deltaconvert.ops.fused import stages_of
from deltaconvert.reach import Pixel, seen_by

if TYPE_CHECKING:
    from deltaconvert.export.network import Network


class Writer(ABC):
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
        for node in network.outputs():
            # A branch may not hand out what is not its own.
            self.g.result(self.g.Identity(self.values[node]), node.meta["dtype"], node.meta["shape"])
        for node, state in names.states.items():
            self.g.result(self.states[node], node.meta["dtype"], state.shape)
        return self.g

    def _flush(self, pending: list[fx.Node]) -> list[fx.Node]:
        if pending:
            self.network.islands.write(self.g, pending, self.values)
        return []

    @abstractmethod
    def _densify(self, node: fx.Node) -> None: ...

    @abstractmethod
    def _sparsify(self, node: fx.Node) -> None: ...

    @abstractmethod
    def _operator(self, node: fx.Node) -> None: ...


class DenseBranch(Writer):
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


class SparseBranch(Writer):
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
        reaches = reaches_of(node)
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
        if len(given) == 1 and all(isinstance(seen_by(reach), Pixel) for reach in reaches):
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


def _described(stage: Any) -> dict[str, Any]:
    """An operator and its settings but for its weights: what a runtime that replaces the function goes by."""
    settings = {key: value for key, value in stage.settings().items() if not isinstance(value, torch.Tensor)}
    return {"type": type(stage).__name__, **json.loads(json.dumps(settings, default=str))}
