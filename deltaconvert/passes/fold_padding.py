"""Padding by zeros moves into the convolution behind it."""

from __future__ import annotations

from torch import fx

from deltaconvert.nodes import names_of, operator_of
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pad import Pad
from deltaconvert.passes.adopt_operators import adopt


def fold_padding(gm: fx.GraphModule) -> fx.GraphModule:
    """Let a convolution make its padding itself, where both sides of the map get the same.

    before:  p = pad(x, (1, 1, 2, 2));  y = conv(p; padding=(0, 0))
    after:   y = conv(x; padding=(2, 1))
    """
    for node in list(gm.graph.nodes):
        conv = operator_of(node)
        source = node.args[0] if isinstance(conv, Conv2d) else None
        pad = operator_of(source) if isinstance(source, fx.Node) else None
        if not isinstance(conv, Conv2d) or not isinstance(pad, Pad) or not _can_fold(pad):
            continue
        padding = tuple(inner + pad.beside(2 + axis)[0] for axis, inner in enumerate(conv.padding))
        wider = Conv2d(**{**conv.settings(), "padding": padding})
        folded = adopt(gm, node, wider, list(source.args))
        folded.meta["parts"] = tuple(dict.fromkeys((*names_of(folded), *names_of(source))))
        if not source.users:
            gm.graph.erase_node(source)
    return gm


def _can_fold(pad: Pad) -> bool:
    """Zeros around the map, as many before it as behind it."""
    zeros = pad.mode == "constant" and pad.fill == 0 and not any(pad.pads[4:])
    return zeros and all(pad.beside(dim)[0] == pad.beside(dim)[1] >= 0 for dim in (2, 3))
