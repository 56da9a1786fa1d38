"""Where a network may have thresholds, and how large its values are there on a clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.lower import Program
from deltaconvert.nodes import names_of, sparsify
from deltaconvert.passes.place_thresholds import kind_of, may_be_named, shares


@dataclass(frozen=True)
class Site:
    """A node that may have a threshold. scale: the mean magnitude there, over the clip."""

    names: tuple[str, ...]
    kind: str
    scale: float
    edge: Any
    shares: Tensor | None  # of a weighted threshold, (C)


def compared(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes that may have a threshold, in the order of the graph."""
    return [node for node in graph.graph.nodes if node.meta.get("placed") or may_be_named(node)]


def sites_of(program: Program, frames: Iterable[Sequence[Tensor]]) -> list[Site]:
    """The sites in the order of the graph. Each of the frames is played as a first frame to measure the scales."""
    nodes, seen = compared(program.plan.graph), list[list[float]]()
    for frame in frames:
        program.reset()
        program.run(frame)
        maps = (program.edges[node.name].values for node in nodes)
        seen.append([float(values.abs().mean(dtype=torch.float32)) for values in maps])
    sites = []
    for node, magnitudes in zip(nodes, zip(*seen, strict=True), strict=True):
        edge, scale = program.edges[node.name], sum(magnitudes) / len(magnitudes)
        weights = None if node.target is sparsify else shares(node).to(edge.values.device, edge.values.dtype)
        sites.append(Site(names_of(node), kind_of(node) or "activation", scale, edge, weights))
    return sites
