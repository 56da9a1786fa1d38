"""From which share of changed blocks on the dense network is faster; decided when exporting, for a box that moves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.narrow import reaches_of
from deltaconvert.nodes import operator_of, sparsify
from deltaconvert.plan import Plan

BLOCK = 16  # pixels on a side: scattered changes count for what they make of the maps behind them
WORTH = 0.75  # the share of multiply-accumulates at which sparse functions take as long as the dense network
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def crossover(plan: Plan) -> float:
    """The largest share of blocks at which a box is still worth the sparse functions."""
    best = 0.0
    for share in SHARES:
        blocks, work = _work(plan, share)
        if work > WORTH:
            break
        best = blocks
    return best


def _work(plan: Plan, share: float) -> tuple[float, float]:
    """(share of blocks, share of multiply-accumulates) for a box of that share of the frame, in its middle."""
    found: dict[fx.Node, Tensor] = {}
    done = total = blocks = 0.0
    for node in plan.graph.graph.nodes:
        operator, shape = operator_of(node), node.meta.get("shape")
        if node.target is sparsify:
            found[node] = _box(shape, share)
            if node.args[0].op == "placeholder":
                edges = [min(BLOCK, side) for side in shape[2:]]
                pooled = F.max_pool2d(found[node].float(), edges, edges, ceil_mode=True)
                blocks = max(blocks, float(pooled.mean()))
        elif operator is not None and node.meta.get("delta"):
            mask = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
            for reach, source in zip(reaches_of(node), node.args, strict=True):
                mask = mask | reach.spread(found[source])
            macs = node.meta["macs"]
            done, total = done + macs * float(mask.float().mean()), total + macs
            # Above zero a threshold is taken to stop what spreads.
            found[node] = mask & _box(shape, share) if node.meta.get("threshold") else mask
    return blocks, done / total if total else share


def _box(shape: tuple[int, ...], share: float) -> Tensor:
    height, width = shape[2:]
    h, w = (max(1, round(side * share**0.5)) for side in (height, width))
    mask = torch.zeros(shape[0], 1, height, width, dtype=torch.bool)
    top, left = (height - h) // 2, (width - w) // 2
    mask[:, :, top : top + h, left : left + w] = True
    return mask
