"""A convolution and the 1x1 convolution that is its only reader, in one kernel (kernels/conv_behind.cu)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from deltaconvert.backends.cuda.conv_kernels import Head
from deltaconvert.backends.cuda.layout import STEP, is_transposed, pitch_of
from deltaconvert.backends.cuda.tail import NoKernel, Tail
from deltaconvert.backends.cuda.wgmma_kernels import ROWS, Also, by_both, slots_of_both
from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import stages_of
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.passes.fuse_tails import fuse, reads_alone
from deltaconvert.reach import Window

MOST_TAPS = 30  # of 32 bits, one for each tap, one for the second map and one for pixels outside


def join_behind(gm: fx.GraphModule) -> fx.GraphModule:
    """Fuse a 1x1 convolution with the convolution that only it reads, where there is no threshold between them and the
    kernel can compute both.

    before:  y = fused[conv3x3, relu](x);  z = fused[conv1x1, add, relu](y, skip)
    after:   z = fused[conv3x3, relu, conv1x1, add, relu](x, skip)
    """
    for node in list(gm.graph.nodes):
        source = node.args[0] if node.meta.get("delta") and node.args else None
        if isinstance(source, fx.Node) and source.meta.get("delta") and _fit(source, node):
            fuse(gm, [source, node])
    return gm


def _fit(source: fx.Node, node: fx.Node) -> bool:
    first, second = operator_of(source), operator_of(node)
    if first is None or second is None or len(source.args) != 1 or not reads_alone(node, source):
        return False
    head, *between = stages_of(first)
    behind, also = parts_of(stages_of(second)[0])
    if not isinstance(head, Conv2d) or behind is None or source.meta["dtype"] != node.meta["dtype"]:
        return False
    plain = all(isinstance(stage, Pointwise) for stage in between)
    beside = also is None or _lie_alike(node.args[1], node, also)
    return plain and beside and are_computed(head, behind, also, node.meta["dtype"], node.meta["device"])


def _lie_alike(source: Any, node: fx.Node, operator: Conv2d) -> bool:
    return operator.stride == (1, 1) and source.meta["shape"][2:] == node.meta["shape"][2:]


def parts_of(operator: Operator) -> tuple[Conv2d | None, Conv2d | None]:
    """The 1x1 convolution that reads the first input, and the one that is added to it."""
    also = operator.second if isinstance(operator, ConvSum) else None
    behind = operator.first if isinstance(operator, ConvSum) else operator
    if not isinstance(behind, Conv2d) or behind.groups > 1 or behind.weight.shape[2:] != (1, 1):
        return None, None
    return (behind, also) if (behind.stride, behind.padding) == ((1, 1), (0, 0)) else (None, None)


def are_computed(
    first: Conv2d, behind: Conv2d, also: Conv2d | None, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether kernels/conv_behind.cu computes them: the weights of both stay in shared memory."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    channels, inputs, kh, kw = first.weight.shape
    values = STEP // dtype.itemsize
    wide = [pitch_of(count, dtype) for count in (inputs, len(behind.weight))]
    fits = (
        dtype in (torch.float16, torch.bfloat16)
        and not is_transposed(first)
        and first.groups == 1
        and channels <= ROWS
        and kh * kw <= MOST_TAPS
        and wide[0] % values == 0  # whole steps
        and wide[1] >= 8
    )
    depth = 0 if also is None else also.weight.shape[1]
    steps, groups = kh * kw * wide[0] // values, -(-len(behind.weight) // ROWS)
    return fits and depth % values == 0 and slots_of_both(steps, groups, depth // values) > 0


def both(
    stages: Sequence[tuple[Operator, int, int]],
    first: Conv2d,
    reach: Any,
    inputs: Sequence[Any],
    edge: Any,
) -> Head:
    """stages: those behind `first` up to the convolution behind it. inputs: the map, and that of a second sum."""
    if edge.values.device.type != "cuda":
        raise NoKernel("two convolutions")
    between = Tail(len(first.weight), edge.values.dtype, edge.values.device)
    *plain, (last, _, _) = stages
    for stage, _, _ in plain:
        between.then(stage, ["v"])
    behind, also = parts_of(last)
    if behind is None or between.macros()["OPERANDS"]:
        raise NoKernel("two convolutions with values of each channel between them")
    window = reach if isinstance(reach, Window) else None
    second: Also | None = None if also is None else (also, inputs[1])
    return by_both(first, window, inputs[0], edge, between, behind, second)
