"""Shared by tests of single kernels on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.backends import cuda
from deltaconvert.backends.base import Map

DEVICE = torch.device("cuda", 0)


def edge_of(values: Tensor) -> cuda.Edge:
    """An edge on DEVICE that holds a map of these values, N C H W."""
    edge = cuda.Edge(Map(tuple(values.shape), values.dtype, DEVICE))
    edge.values.copy_(values)
    return edge
