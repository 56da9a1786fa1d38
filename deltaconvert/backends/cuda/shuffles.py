"""Pixel shuffles that end a network write changed pixels directly to the output, by the list of their input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda.concats import note_of
from deltaconvert.backends.cuda.edges import Edge, Planes
from deltaconvert.backends.cuda.launches import THREADS, blocks_of
from deltaconvert.backends.cuda.marks import Enlarged
from deltaconvert.nodes import densify, operator_of
from deltaconvert.ops.pixel_shuffle import PixelShuffle

if TYPE_CHECKING:
    from deltaconvert.backends.cuda import Backend

PIXEL_BYTES = 192  # that a thread of kernels/unfold.cu holds


def note_last_shuffles(gm: fx.GraphModule) -> fx.GraphModule:
    """Note the pixel shuffles whose maps only leave the delta graph. An upscaler's last map is its largest, with
    sixteen times the pixels of the one before: it would be marked, listed, stored, and copied to N C H W.

    before:  y = pixel_shuffle(x);  out = densify(y)
    after:   the same, with y.meta["cuda"]["leaves"] = True
    """
    for node in gm.graph.nodes:
        if isinstance(operator_of(node), PixelShuffle) and node.meta.get("delta"):
            leaves = "threshold" not in node.meta and all(user.target is densify for user in node.users)
            note_of(node)["leaves"] = leaves and "part" not in note_of(node)
    return gm


def plane_memory(kept: Map) -> Tensor:
    """Memory for an edge that has the order N C H W."""
    return torch.zeros(kept.shape, dtype=kept.dtype, device=kept.device).permute(0, 2, 3, 1)


class LastShuffle:
    """A step that moves its input's changed pixels to the planes of the output."""

    def __init__(self, backend: Backend, operator: PixelShuffle, source: Edge, edge: Edge, changes: Any):
        self.operator, self.inputs, self.edge = operator, [source], edge
        self.candidates, self._backend = changes, backend
        n, device = len(edge.values), edge.values.device
        marks = source.marks
        edge.marks = Enlarged(
            marks.size, marks.bits, backend.counter(n, device), marks.source, factor=operator.factor
        )
        edge.computed, edge.planes = backend.counter(1, device), Planes(backend, edge, changes)

    def rebuild(self) -> None:
        """Nothing is kept beside the edges."""

    def run(self) -> None:
        (source,), edge = self.inputs, self.edge
        self._backend.join(self.candidates.aside)
        height, width = source.values.shape[2:]
        factor = self.operator.factor
        planes = planes_at_once(edge.values.shape[1], factor**2 * edge.values.itemsize)
        self._backend.launch(
            self._backend.kernel("unfold.cu", "unfold", edge.values.dtype, UP=factor, PLANES=planes),
            (blocks_of(source),),
            THREADS,
            source.values,
            np.int32(source.pitch),
            edge.values,
            self.candidates.places,
            self.candidates.count,
            source.marks.changed,
            edge.computed,
            edge.marks.changed,
            *map(np.int32, (*edge.values.shape[:2], height, width)),
        )


def planes_at_once(channels: int, box_bytes: int) -> int:
    """How many planes a thread of `unfold` writes for a pixel at once: whole vectors, as far as registers suffice."""
    fits = (n for n in range(channels, 0, -1) if channels % n == 0 and n * box_bytes <= PIXEL_BYTES)
    return next((n for n in fits if n == channels or n * box_bytes % 16 == 0), 1)
