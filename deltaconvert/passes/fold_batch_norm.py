"""Batch norm moves into the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from deltaconvert.nodes import names_of, operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.passes.adopt_operators import adopt


def fold_batch_norm(gm: fx.GraphModule) -> fx.GraphModule:
    """Scale the weights of a convolution that only a batch norm reads.

    before:  y = conv(x; w, b);  z = batch_norm(y; scale, shift)
    after:   z = conv(x; w * scale, b * scale + shift)
    """
    for node in list(gm.graph.nodes):
        norm = operator_of(node)
        if not isinstance(norm, BatchNorm):
            continue
        source = node.args[0]
        conv = operator_of(source)
        if isinstance(conv, Conv2d | ConvTranspose2d) and len(source.users) == 1:
            folded = adopt(gm, node, _folded(conv, norm), list(source.args))
            names = (*names_of(source), *names_of(node))
            folded.meta.update(path=names[0], parts=names)
            gm.graph.erase_node(source)
            gm.delete_submodule(str(source.target))
    return gm


def _folded(conv: Conv2d | ConvTranspose2d, norm: BatchNorm) -> Operator:
    # Folding in double and rounding once costs no accuracy against the unfolded pair.
    scale, shift = norm.scale.double(), norm.shift.double()
    weight = conv.weight.double()
    if isinstance(conv, Conv2d):
        weight = weight * scale.view(-1, 1, 1, 1)
    else:
        groups = conv.groups
        grouped = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
        weight = (grouped * scale.view(groups, 1, -1, 1, 1)).view_as(weight)
    bias: Tensor = shift if conv.bias is None else conv.bias.double() * scale + shift
    dtype = conv.weight.dtype
    settings = {**conv.settings(), "weight": weight.to(dtype), "bias": bias.to(dtype)}
    with torch.no_grad():
        return type(conv)(**settings)
