"""Frames read where they lie. A CUDA graph's kernels have fixed arguments, so the address of a frame stands on the
device: it is written there before the graph, where it is another than the last one's, and nothing is copied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from deltaconvert.layout import memory_of
from deltaconvert.nodes import sparsify
from deltaconvert.passes.views import kind_of

ALIGNED = 32  # bytes: the longest that a kernel reads of a frame at once are four doubles


class Addresses:
    """The addresses of a network's inputs, as its kernels find them."""

    def __init__(self, inputs: Collection[Tensor], device: torch.device):
        self._on_device = torch.zeros(len(inputs), dtype=torch.int64, device=device)
        self._told = [0] * len(inputs)
        self._memories: list[int] = []
        self.tell(inputs)

    def tell(self, inputs: Collection[Tensor]) -> None:
        """What is launched from now on reads these."""
        self._memories = [memory_of(frame) for frame in inputs]
        for place, frame in enumerate(inputs):
            if self._told[place] != frame.data_ptr():
                self._told[place] = frame.data_ptr()
                self._on_device[place].fill_(self._told[place])  # the number travels with the launch

    def of(self, frame: Tensor) -> tuple[np.uint64, np.uint64]:
        """The first parameters of a kernel that reads a frame, `frame` and `at` of kernels/frame.cuh: for an input, or
        one that was only turned round, it is found where the input's address stands."""
        memory, address = memory_of(frame), frame.data_ptr()
        if memory not in self._memories:
            return np.uint64(address), np.uint64(0)
        place = self._memories.index(memory)
        behind = (address - self._told[place]) % 2**64
        return np.uint64(behind), np.uint64(self._on_device[place].data_ptr())


def read_in_place(steps: Sequence[Any], slots: Collection[int]) -> set[int]:
    """The slots of the inputs that need no copy."""
    if not steps:
        return set()
    by_node = {step.node: step for step in steps}
    inputs = [node for node in steps[0].node.graph.nodes if node.op == "placeholder"]
    return {slot for node, slot in zip(inputs, slots, strict=True) if _is_only_compared(node, by_node)}


def _is_only_compared(node: fx.Node, steps: Mapping[fx.Node, Any]) -> bool:
    """Nothing reads a frame but kernels that compare it with what is stored. It may be turned round before, and bytes
    become values on the way; the caller who gets it back as an output gets his own."""
    for user in node.users:
        if user.op == "output":
            fine = node.op == "placeholder"
        elif user.target is sparsify:
            fine = steps[user].edge.is_by_kernels
        else:
            is_on_the_way = user not in steps or kind_of(user) == "permute"
            fine = is_on_the_way and _is_only_compared(user, steps)
        if not fine:
            return False
    return True


def lies_as(frame: Tensor, other: Tensor) -> bool:
    """Whether kernels made for one can read the other: they lie in the same order, whole and aligned."""
    strides = zip(frame.shape, frame.stride(), other.stride(), strict=True)
    return frame.data_ptr() % ALIGNED == 0 and all(a == b for size, a, b in strides if size > 1)
