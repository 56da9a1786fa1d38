"""Frames that are read in place. A CUDA graph's kernels have fixed arguments, so the address of a frame is kept on the
device. It is written there before the graph if it has changed, and the frame is not copied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from deltaconvert.layout import memory_of
from deltaconvert.nodes import sparsify
from deltaconvert.passes.views import kind_of

ALIGNED = 32  # bytes: at most four doubles are read at once


class Addresses:
    """The addresses of a network's inputs, on the device, where its kernels read them."""

    def __init__(self, inputs: Collection[Tensor], device: torch.device):
        self._on_device = torch.zeros(len(inputs), dtype=torch.int64, device=device)
        self._told = [0] * len(inputs)
        self._memories: list[int] = []
        self.tell(inputs)

    def tell(self, inputs: Collection[Tensor]) -> None:
        """Let what is launched from now on read these frames."""
        self._memories = [memory_of(frame) for frame in inputs]
        for place, frame in enumerate(inputs):
            if self._told[place] != frame.data_ptr():
                self._told[place] = frame.data_ptr()
                self._on_device[place].fill_(self._told[place])  # the number travels with the launch

    def of(self, frame: Tensor) -> tuple[np.uint64, np.uint64]:
        """The parameters `frame` and `at` of a kernel that reads a frame (kernels/frame.cuh). An input, also a
        permuted one, is found by its address on the device."""
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
    """Only kernels that compare a frame with what is stored read it. It may be permuted or cast from bytes before
    that. A caller that gets it back as an output gets the tensor that it gave."""
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
    """Whether kernels made for one can read the other: the same order in memory, without gaps, and aligned."""
    strides = zip(frame.shape, frame.stride(), other.stride(), strict=True)
    return frame.data_ptr() % ALIGNED == 0 and all(a == b for size, a, b in strides if size > 1)
