"""A network's output as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

MOST_NUMBERS = 4096  # of one tensor; a larger one is summarised
TOP = 5


def describe(output: Any) -> list[dict[str, Any]]:
    """One entry for each tensor of the output of one image, in the order of its leaves.

    Small tensors come with their values, large ones with least, largest and mean; a row of scores with its best five.
    """
    return [
        _describe(leaf[0].float().cpu()) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)
    ]


def _describe(tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": list(tensor.shape)}
    finite = bool(tensor.isfinite().all())
    if not finite:
        entry["not_finite"] = int((~tensor.isfinite()).sum())
        tensor = tensor.nan_to_num(0.0, 0.0, 0.0)  # JSON has no NaN
    if tensor.numel() <= MOST_NUMBERS:
        entry["values"] = tensor.tolist()
    else:
        least, largest = torch.aminmax(tensor)
        entry |= {"min": float(least), "max": float(largest), "mean": float(tensor.mean())}
    if tensor.dim() == 1 and len(tensor) > TOP:
        scores, classes = tensor.topk(TOP)
        entry["top"] = [
            {"class": c, "score": s} for c, s in zip(classes.tolist(), scores.tolist(), strict=True)
        ]
    return entry
