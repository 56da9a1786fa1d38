"""plan: per node delta or dense and why not, conversions, fusion, thresholds; for one size of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from deltaconvert.passes import Pass, run_passes
from deltaconvert.passes.adopt_operators import adopt_operators
from deltaconvert.passes.convert_edges import cancel_conversions, insert_conversions
from deltaconvert.passes.decide import decide
from deltaconvert.passes.drop_expands import drop_expands
from deltaconvert.passes.drop_identities import drop_identities
from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from deltaconvert.passes.fold_constants import fold_constants
from deltaconvert.passes.fold_padding import fold_padding
from deltaconvert.passes.follow_layouts import follow_layouts
from deltaconvert.passes.fuse_tails import fuse_tails
from deltaconvert.passes.keep_channels import keep_channels
from deltaconvert.passes.open_tuples import open_tuples
from deltaconvert.passes.part_batches import part_batches
from deltaconvert.passes.place_thresholds import place_thresholds
from deltaconvert.passes.propagate import propagate
from deltaconvert.passes.split_norms import split_late_norms
from deltaconvert.thresholds import Thresholds


@dataclass
class Plan:
    """A delta graph for one input size. As a function of one frame, `graph` is still the dense network."""

    graph: fx.GraphModule
    streams: int


def plan(
    gm: fx.GraphModule,
    frames: Sequence[Tensor],
    thresholds: Thresholds,
    keep_dense: Sequence[str] = (),
    passes: Sequence[Pass] = (),
) -> Plan:
    """Plan the normalised graph `gm` for inputs of the size of `frames`; `gm` stays as it is.

    The frames run through the dense graph once: shapes, work, and the magnitudes that relative thresholds refer to.
    passes: what the backend that the plan is for wants done to it, at the end.
    """
    streams = streams_of(frames)
    planned = run_passes(
        _copy(gm),
        (
            propagate(frames),
            fold_constants,
            open_tuples,
            keep_channels,
            drop_identities,
            adopt_operators,
            fold_padding,
            fold_batch_norm,
            split_late_norms(frames),
            drop_expands,
            part_batches(streams, keep_dense),
            follow_layouts(streams, keep_dense),
            decide(streams, keep_dense),
            insert_conversions,
            cancel_conversions,
            fuse_tails,
            place_thresholds(thresholds),
            *passes,
        ),
    )
    return Plan(planned, streams)


def streams_of(frames: Sequence[Tensor]) -> int:
    """The batch size of the first map among the inputs: one stream for each of its images."""
    for frame in frames:
        if frame.dim() == 4:
            return frame.shape[0]
    return 1


def _copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own over the same modules and weights."""
    graph = fx.Graph()
    result = graph.graph_copy(gm.graph, {})
    graph.output(result)
    with torch.no_grad():
        return fx.GraphModule(gm, graph, type(gm).__name__)
