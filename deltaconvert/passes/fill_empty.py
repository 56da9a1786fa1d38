"""torch.empty and its kin hold zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from deltaconvert.nodes import name_called
from deltaconvert.passes.spell_aten import aten_name

_FILLED: dict[str | None, Any] = {
    "empty": torch.zeros,
    "empty_like": torch.zeros_like,
    "new_empty": "new_zeros",
}
# How a new tensor lies in memory, which a map of zeros has no say in; a file could not hold it.
_OF_MEMORY = ("memory_format", "layout", "pin_memory")


def fill_empty(gm: fx.GraphModule) -> fx.GraphModule:
    """Fill uninitialised memory, so that it is the same in every frame and no output shows what was there before.

    before:  room = x.new_empty(n, 4, h, w);  y = put(room, ..., x)
    after:   room = x.new_zeros(n, 4, h, w);  y = put(room, ..., x)
    """
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        filled = _FILLED.get(aten_name(node) or name_called(node))
        if filled is not None:
            node.op = "call_method" if isinstance(filled, str) else "call_function"
            node.target = filled
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in _OF_MEMORY}
    return gm
