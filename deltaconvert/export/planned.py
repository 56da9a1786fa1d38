"""What every exported form starts from: a plan for one size, names, and the facts that travel with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import deltaconvert
from deltaconvert.advice import kept_beside_tensors
from deltaconvert.errors import ExportError, first_line
from deltaconvert.export.names import Names, State
from deltaconvert.nodes import is_delta, names_of
from deltaconvert.passes.join_pixels import join_pixels
from deltaconvert.plan import Plan, plan
from deltaconvert.thresholds import Thresholds
from deltaconvert.tracing import parts

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel


FORMAT = 1  # of what a runner goes by: names, layouts, metadata


@dataclass
class Planned:
    """facts: plain JSON that travels along, about where the network comes from."""

    plan: Plan
    names: Names
    facts: dict[str, Any]


def planned(delta: DeltaModel, form: str) -> Planned:
    """Plan the network, on the CPU, for the size that it ran last. form: what it is to become, for messages."""
    if delta.gate.to_json():
        raise ExportError(
            f"the network has a gate, which has no form in {form} yet: convert it without gate=, and keep the "
            "thresholds"
        )
    found = parts.parts_of(delta.graph)
    if found:
        raise ExportError(
            f"the network could not be captured as a whole, only {', '.join(found)}: convert and export these by "
            "themselves"
        )
    unwritten = kept_beside_tensors(delta.graph)
    if unwritten is not None:
        raise ExportError(unwritten)
    frames = [torch.zeros(shape, dtype=dtype) for shape, dtype in delta.inputs]
    graph = delta.graph if _on_cpu(delta) else copy.deepcopy(delta.graph).cpu()
    try:
        made = plan(graph, frames, Thresholds.of(delta.rules), delta.keep_dense, (join_pixels,))
    except RuntimeError as error:  # it finds nothing there
        raise ExportError(
            f"the network does not run on a frame of zeros, which {form} is made on: {first_line(error)}"
        ) from error
    facts = {
        "version": deltaconvert.__version__,
        "format": FORMAT,
        "thresholds": dict(delta.rules),
        "info": delta.info,
    }
    return Planned(made, _named(made), facts)


def _on_cpu(delta: DeltaModel) -> bool:
    return all(tensor.device.type == "cpu" for tensor in (*delta.graph.parameters(), *delta.graph.buffers()))


def _named(planned: Plan) -> Names:
    """frame, or frame.0, frame.1, ...; output likewise; a state is called after its node's path."""
    nodes = list(planned.graph.graph.nodes)
    frames = [node for node in nodes if node.op == "placeholder"]
    outputs = [node for node in nodes[-1].args[0] if isinstance(node, fx.Node)]
    states: dict[fx.Node, State] = {}
    taken: set[str] = set()
    for node in nodes:
        if is_delta(node):
            name = names_of(node)[0]
            name = name if name not in taken else node.name
            taken.add(name)
            states[node] = State(node, name)
    return Names(
        dict(zip(frames, _numbered("frame", len(frames)), strict=True)),
        _numbered("output", len(outputs)),
        states,
    )


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word}.{place}" for place in range(count)]
