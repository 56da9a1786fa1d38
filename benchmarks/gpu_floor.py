"""The least time that a converted network's frame can take on a GPU, from the bytes it moves and its operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch

import deltaconvert


def floor_ms(delta: deltaconvert.DeltaModel, limits: Mapping[str, float]) -> float:
    """The least milliseconds of the last frame, by its bytes or its operations at the rates of `gpu_dense.ceilings`."""
    moved, operations = (sum(of_a_kind) for of_a_kind in zip(*work_by_layer(delta).values(), strict=True))
    return max(moved / limits["bytes_per_second"], operations / limits["flops_per_second"]) * 1e3


def work_by_layer(delta: deltaconvert.DeltaModel) -> dict[str, tuple[float, float]]:
    """{path: (bytes, operations)} of the last frame: candidates read and written once, weights where there are any."""
    explained = {row.path: row for row in delta.explain().rows}
    program = delta._program
    size = next(iter(program.edges.values())).values.element_size()
    weights = {
        node.meta.get("path", node.name): sum(
            b.numel() for b in program.plan.graph.get_submodule(str(node.target)).buffers()
        )
        for node in program.plan.graph.graph.nodes
        if node.op == "call_module"
    }
    found = {}
    for layer in delta.stats().layers:
        row = explained[layer.path]
        maps = [row.shape, *(explained[p].shape for p in row.inputs if p in explained)]
        values = sum(torch.Size(shape).numel() for shape in maps if shape)
        moved = size * (values * layer.computed + weights.get(layer.path, 0) * (layer.computed > 0))
        found[layer.path] = (moved, 2.0 * layer.macs_done)
    return found
