"""1x1 convolutions also take channels out of a map, and join maps, by weights of 1 and 0.

In every block a ShuffleNet splits a map, convolves one half and joins it to the other. Few channels are moved, and each
step costs a launch. In half and bfloat16 a sum with a weight of 1 is the value itself. Channels with a weight of 0 have
to be finite: one that overflowed makes the sums of its pixel NaN, one block earlier than it would anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.backends.cuda.convs import adds_maps
from deltaconvert.nodes import operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.channels import ChannelIndex, Channels, ChannelShuffle, Concat
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import Fused, stages_of
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.ops.pool import MaxPool2d
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.fuse_tails import inherit, reads_alone

# Up to so many channels a 1x1 convolution waits for its pixels, not for its products: twice as many products, half of
# them by 0, cost nothing.
MOST_CHANNELS = 256
_ORDERS = (Channels, ChannelIndex, ChannelShuffle)  # of the channels of a map
_OUT_OF_BOUNDS = ("relu", "relu6", "sigmoid", "hardsigmoid")  # activations that are never below 0


@dataclass
class Part:
    """A map as a 1x1 convolution of another: weight (C', C), bias (C') or None, and the activations behind it."""

    made_by: fx.Node
    source: fx.Node
    weight: Tensor
    bias: Tensor | None
    tail: list[Pointwise] | None  # None: it is the channels themselves

    @property
    def channels(self) -> int:
        return len(self.weight)

    def takes(self, tail: Sequence[Pointwise]) -> bool:
        """Whether `tail` gives the same result as the part's own tail."""
        if self.tail is not None:
            return [stage.settings() for stage in self.tail] == [stage.settings() for stage in tail]
        return not tail or (_is_relu(tail) and is_never_negative(self.source))

    def widened(self, first: int, channels: int) -> Conv2d:
        """The part as channels `first` and following of a map of so many channels."""
        weight = self.weight.new_zeros(channels, self.weight.shape[1])
        weight[first : first + self.channels] = self.weight
        bias = weight.new_zeros(channels)
        if self.bias is not None:
            bias[first : first + self.channels] = self.bias
        return _on_pixels(weight, bias)


def join_pixel_concats(gm: fx.GraphModule) -> fx.GraphModule:
    """Two maps that are joined, each a 1x1 convolution or channels of another map, become one sum.

    before:  a = channels(x, 0::2);  b = fused[conv1x1, relu](y);  z = concat(a, b)
    after:   z = fused[sum(conv1x1, conv1x1), relu](y, x), with weights of 1 and 0 for x
    """
    for node in list(gm.graph.nodes):
        if isinstance(operator_of(node), Concat) and node.meta.get("delta") and len(node.args) == 2:
            parts = [_part_of(source, node) for source in node.args]
            if "threshold" not in node.meta and None not in parts:
                _join(gm, node, parts)  # type: ignore[arg-type]
    return gm


def _join(gm: fx.GraphModule, node: fx.Node, parts: Sequence[Part]) -> None:
    """Replace the concatenation, if the kernel can compute the sum."""
    left, right = parts
    channels = left.channels + right.channels
    convolved = [part for part in parts if part.tail is not None]
    if not convolved or channels > MOST_CHANNELS or left.source is right.source:
        return
    of_left, of_right = left.widened(0, channels), right.widened(left.channels, channels)
    first, second, both = left, right, (of_left, of_right)
    if first is not convolved[0]:  # the sum gets the path of a convolution
        first, second, both = right, left, (of_right, of_left)
    tail = first.tail or []
    fits = adds_maps(*both, dtype=node.meta["dtype"], device=node.meta["device"])
    if not fits or not carries(node) or not second.takes(tail):
        return
    joined = _with_tail(ConvSum(*both), tail)
    inherit(adopt(gm, node, joined, [first.source, second.source]), [first.made_by, second.made_by, node])
    for part in parts:
        gm.graph.erase_node(part.made_by)


def _part_of(node: Any, user: fx.Node) -> Part | None:
    operator = operator_of(node)
    if operator is None or not node.meta.get("delta") or not reads_alone(user, node) or len(node.args) > 1:
        return None
    source, (head, *tail) = node.args[0], stages_of(operator)
    if isinstance(head, _ORDERS):
        taken = taken_by(head, source)
        weight = torch.eye(source.meta["shape"][1], dtype=node.meta["dtype"], device=taken.device)[taken]
        return None if tail else Part(node, source, weight.to(node.meta["device"]), None, None)
    if not is_on_pixels(head) or not all(isinstance(stage, Pointwise) for stage in tail):
        return None
    return Part(node, source, head.weight[..., 0, 0], head.bias, tail)  # type: ignore[arg-type]


def fold_orders(gm: fx.GraphModule) -> fx.GraphModule:
    """Let a 1x1 convolution of some channels read the whole map, with weights of 0 for the others; and let a
    convolution whose channels are put in another order make them in that order.

    before:  a = channels(x, 1::2);  y = fused[conv1x1, relu](a);  z = shuffle(y)
    after:   z = fused[conv1x1, relu](x)
    """
    for node in list(gm.graph.nodes):
        source = node.args[0] if node.meta.get("delta") and len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or operator_of(source) is None or not reads_alone(node, source):
            continue
        operator, before = operator_of(node), operator_of(source)
        if not source.meta.get("delta") or not carries(node) or operator is None or before is None:
            continue
        if isinstance(operator, _ORDERS):
            _reorder(gm, source, node)
        elif isinstance(before, _ORDERS) and is_on_pixels(stages_of(operator)[0]):
            _read_whole(gm, source, node)
    return gm


def _read_whole(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> None:
    """Let the convolution of `node` read the map that `source` takes channels out of."""
    whole = source.args[0]
    head, *tail = stages_of(operator_of(node))  # type: ignore[arg-type]
    channels = whole.meta["shape"][1]  # type: ignore[union-attr]
    if channels > MOST_CHANNELS:
        return
    taken = taken_by(operator_of(source), whole)  # type: ignore[arg-type]
    weight = head.weight.new_zeros(len(head.weight), channels)
    weight.index_add_(1, taken.to(weight.device), head.weight[..., 0, 0])
    reading = _with_tail(_on_pixels(weight, head.bias), tail)
    inherit(adopt(gm, node, reading, [whole]), [node, source])
    gm.graph.erase_node(source)


def _reorder(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> None:
    """Let the convolution of `source` make its channels in the order that `node` puts them in."""
    head, *tail = stages_of(operator_of(source))  # type: ignore[arg-type]
    taken = taken_by(operator_of(node), source)  # type: ignore[arg-type]
    parts = [head.first, head.second] if isinstance(head, ConvSum) else [head]
    plain = all(isinstance(stage, Pointwise) for stage in tail)
    if "threshold" in node.meta or not plain or not all(map(is_on_pixels, parts)):
        return
    ordered: list[Any] = [_on_pixels(*_rows_of(part, taken)) for part in parts]
    first = ConvSum(*ordered) if len(ordered) > 1 else ordered[0]
    inherit(adopt(gm, node, _with_tail(first, tail), list(source.args)), [source, node])
    gm.graph.erase_node(source)


def _rows_of(conv: Any, taken: Tensor) -> tuple[Tensor, Tensor | None]:
    rows = taken.to(conv.weight.device)
    return conv.weight[rows, :, 0, 0], None if conv.bias is None else conv.bias[rows]


def _with_tail(head: Operator, tail: Sequence[Operator]) -> Operator:
    inputs = 2 if isinstance(head, ConvSum) else 1
    return Fused([head, *tail], [0] * len(tail), [0] * len(tail), inputs) if tail else head


def taken_by(operator: Operator, source: Any) -> Tensor:
    """int64 (C'): which channels of its input an operator copies. Found by running the operator."""
    device = operator.index.device if isinstance(operator, ChannelIndex) else "cpu"
    places = torch.arange(source.meta["shape"][1], dtype=torch.float64, device=device)
    taken: Tensor = operator(places.view(1, -1, 1, 1)).flatten().long()
    return taken


def is_on_pixels(operator: Operator) -> bool:
    """A 1x1 convolution of all channels, a pixel for each."""
    return (
        isinstance(operator, Conv2d)
        and operator.groups == 1
        and tuple(operator.weight.shape[2:]) == operator.stride == (1, 1)
        and operator.padding == (0, 0)
    )


def _on_pixels(weight: Tensor, bias: Tensor | None) -> Conv2d:
    return Conv2d(weight[..., None, None], bias, (1, 1), (0, 0), (1, 1), 1)


def carries(node: fx.Node) -> bool:
    """Its sums are in a type that holds every value of a map exactly."""
    return node.meta["dtype"] in (torch.float16, torch.bfloat16)


def _is_relu(tail: Sequence[Pointwise]) -> bool:
    return len(tail) == 1 and tail[0].function == "relu"


def is_never_negative(node: fx.Node) -> bool:
    operator = operator_of(node) if node.meta.get("delta") else None
    if operator is None:
        return False
    last = stages_of(operator)[-1]
    if isinstance(last, Pointwise):
        return last.function in _OUT_OF_BOUNDS
    return isinstance(last, (*_ORDERS, Concat, MaxPool2d)) and all(
        map(is_never_negative, node.all_input_nodes)
    )
