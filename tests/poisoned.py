"""Fills the state of backends/cuda with a NaN that no network computes, to see what a frame writes."""

from __future__ import annotations

import torch
from oracle import assert_same_bits, edges
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.reference import INTEGER, fill_unseen


def assert_writes_its_mask(
    network: nn.Module, base: Tensor, moved: Tensor, threshold: float = 0.0
) -> set[str]:
    """From `base` to `moved`, each node writes the pixels of its mask and no others. Returns the sources of its
    kernels.

    The state of one node at a time is filled; what the next frame overwrites has to be its mask. A pixel's channels are
    written all or not at all, and the padding behind its last channel stays zero. Of a map that is joined in place,
    the parts are looked at. Maps that are passed on share memory: that is filled, and no output may show it.
    """
    model = deltaconvert.convert(network, base, threshold={"activation": threshold}, backend="cuda")
    model(base)
    nodes = model._program.plan.graph.graph.nodes
    joined = [node.name for node in nodes if "joins" in node.meta.get("cuda", {})]
    for path, edge in edges(model).items():
        values = edge.values
        if path in joined or not edge.is_kept or values.dtype == torch.bool:
            continue
        bits = values.view(INTEGER[values.element_size()]) if values.is_floating_point() else values
        model.reset()
        model(base)
        edge.reset(slice(None))
        poison = bits.flatten()[0].clone()
        model(moved)
        written = bits != poison
        assert torch.equal(written.any(1, keepdim=True), edge.mask), path
        assert torch.equal(written.all(1, keepdim=True), edge.mask), path
        if edge.is_part:
            continue
        memory = torch.empty(0, dtype=values.dtype).set_(values.untyped_storage())
        pixels = memory.view(-1, edge.pitch)
        assert not pixels[:, values.shape[1] :].any(), f"{path}: behind the last channel"
    outputs = []
    for fills in (False, True):
        model.reset()
        model(base)
        for memory in model._program._backend._scratch.values() if fills else ():
            fill_unseen(memory)
        outputs.append(model(moved))
    assert_same_bits(*outputs, "with what lies in shared memory gone")
    steps = (getattr(step, "_step", step) for step in model._program.operators)
    launches = [getattr(step, "launch", None) for step in steps]
    return {launch._kept[0].source for launch in launches if launch is not None}
