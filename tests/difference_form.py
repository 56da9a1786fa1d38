"""DeltaCNN in difference form, written from the paper (arXiv 2203.03996, section 3), in float64: an oracle for tests.

Edges carry differences between frames and a mask. Linear operators work on the differences alone and add their
constant part in the first frame. Nonlinear ones keep an accumulator of each input and emit f(new) - f(old). At a
threshold, a pixel whose difference is at most the threshold in all channels is truncated: it is not sent, and the
residual is added to the next frame's difference. Masks of windows come from convolving the mask with ones, so nothing
here shares code with deltaconvert.reach.

It runs the operators and thresholds of a plan, stage by stage, for graphs of delta nodes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.model import DeltaModel
from deltaconvert.nodes import densify, operator_of, sparsify
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.channels import ChannelIndex, Channels, ChannelShuffle, Concat
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.group_norm import Statistics
from deltaconvert.ops.pad import Pad
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.places import Crop, Flip, Places, Roll
from deltaconvert.ops.pool import AvgPool2d, LpPool2d, MaxPool2d
from deltaconvert.ops.resample import AdaptivePool2d, Interpolate
from deltaconvert.ops.spatial_norm import SpatialNorm

Delta = tuple[Tensor, Tensor]  # differences (zero where the mask is not set), mask


@dataclass
class Truncation:
    """Drops what is small and keeps it for later. `margin` is how close a comparison came to its threshold."""

    threshold: float
    residual: Tensor | None = None
    margin: float = float("inf")

    def __call__(self, difference: Tensor, mask: Tensor, first: bool) -> Delta:
        if not first:
            assert self.residual is not None
            difference = difference + self.residual
            size = difference.abs().amax(1, keepdim=True)
            # A pixel that did not change keeps the residual that was truncated before.
            touched = size[mask]
            # At threshold 0 only an exact zero equals the threshold; rounding in the sums must not decide it.
            draws = touched if self.threshold > 0 else touched[touched != 0]
            if draws.numel():
                self.margin = min(self.margin, float((draws - self.threshold).abs().min()))
            mask = mask & (size > self.threshold)
        self.residual = torch.where(mask, 0.0, difference)
        return torch.where(mask, difference, 0.0), mask


class Nonlinear:
    """f(accumulated + difference) - f(accumulated)."""

    def __init__(self, function: Operator):
        self.function = function
        self.accumulated: list[Tensor] = []

    def __call__(self, differences: Sequence[Tensor], first: bool) -> Tensor:
        if first:
            self.accumulated = list(differences)
            return self.function(*self.accumulated)
        before = self.function(*self.accumulated)
        self.accumulated = [a + d for a, d in zip(self.accumulated, differences, strict=True)]
        return self.function(*self.accumulated) - before


def linear_part(operator: Operator, xs: Sequence[Tensor], first: bool) -> Tensor | None:
    """The output of a linear operator, in the first frame with its constant; None if it is not linear."""
    if isinstance(operator, Conv2d):
        o, bias = operator, operator.bias if first else None
        return F.conv2d(xs[0], o.weight, bias, o.stride, o.padding, o.dilation, o.groups)
    if isinstance(operator, ConvTranspose2d):
        o, bias = operator, operator.bias if first else None
        return F.conv_transpose2d(
            xs[0], o.weight, bias, o.stride, o.padding, o.output_padding, o.groups, o.dilation
        )
    if isinstance(operator, BatchNorm):
        scale = operator.weight / (operator.var + operator.eps).sqrt()
        shift = operator.bias - operator.mean * scale
        y = xs[0] * scale.view(-1, 1, 1, 1).squeeze(-1)
        return y + shift.view(1, -1, 1, 1) if first else y
    if isinstance(operator, Concat):
        return torch.cat(list(xs), 1)
    if isinstance(operator, Channels | ChannelIndex | ChannelShuffle | PixelShuffle | PixelUnshuffle):
        return operator(xs[0])
    if isinstance(operator, Pad):
        return operator(xs[0]) if first else F.pad(xs[0], operator.pads, operator.mode)
    if isinstance(operator, AvgPool2d | Interpolate | Places) or (
        isinstance(operator, AdaptivePool2d) and operator.kind == "avg"
    ):
        return operator(xs[0])
    if isinstance(operator, Arithmetic) and operator.function in ("add", "sub"):
        sign = -1 if operator.function == "sub" else 1
        terms = (
            [*xs] if len(xs) == 2 else [xs[0], torch.as_tensor(operator.other if first else 0.0).to(xs[0])]
        )
        a, b = reversed(terms) if operator.reverse else terms
        return a + sign * b
    if isinstance(operator, Arithmetic) and operator.function == "mul" and len(xs) == 1:
        return xs[0] * operator.other
    return None


def spread(operator: Operator, mask: Tensor, size: Sequence[int]) -> Tensor:
    """The output pixels that can have changed, by sums of ones."""
    ones = mask.double()
    if isinstance(operator, Conv2d):
        kernel = torch.ones(1, 1, *operator.weight.shape[2:], dtype=torch.float64)
        reached = F.conv2d(ones, kernel, None, operator.stride, operator.padding, operator.dilation)
    elif isinstance(operator, ConvTranspose2d):
        o, kernel = operator, torch.ones(1, 1, *operator.weight.shape[2:], dtype=torch.float64)
        reached = F.conv_transpose2d(ones, kernel, None, o.stride, o.padding, o.output_padding, 1, o.dilation)
    elif isinstance(operator, AvgPool2d):
        o = operator
        reached = F.avg_pool2d(ones, o.kernel, o.stride, o.padding, o.ceil_mode, divisor_override=1)
    elif isinstance(operator, LpPool2d):
        reached = F.avg_pool2d(ones, operator.kernel, operator.stride, 0, operator.ceil_mode)
    elif isinstance(operator, PixelShuffle):
        reached = F.interpolate(ones, scale_factor=operator.factor)
    elif isinstance(operator, PixelUnshuffle):
        reached = F.max_pool2d(ones, operator.factor)
    elif isinstance(operator, Pad):
        reached = F.pad(ones, operator.pads[:4], operator.mode)
    elif isinstance(operator, Crop):
        reached = ones[:, :, slice(*operator.rows), slice(*operator.cols)]
    elif isinstance(operator, Interpolate):
        # Bicubic weights have both signs: sums of ones may cancel, sums of these do not.
        draw = torch.Generator(ones.device).manual_seed(0)
        uneven = torch.rand(ones.shape, dtype=ones.dtype, device=ones.device, generator=draw) + 0.5
        reached = operator(ones * uneven).abs()
    elif isinstance(operator, MaxPool2d | AdaptivePool2d | Roll | Flip):
        reached = operator(ones)
    elif isinstance(operator, Statistics | SpatialNorm):
        reached = F.adaptive_max_pool2d(ones, 1)
    else:
        reached = ones if ones.shape[2:] == tuple(size) else ones.expand(-1, -1, *size)
    # If a whole stream changes, pixels that read only padding count as well: a mask of ones stays one.
    return (reached > 1e-6) | mask.flatten(1).all(1).view(-1, 1, 1, 1)


@dataclass
class DifferenceForm:
    """Runs the plan of `model` in difference form: call it with frames, it returns outputs as a list.

    masks: of the last frame, by node name; margin(): how close any comparison came to its threshold.
    """

    model: DeltaModel
    masks: dict[str, Tensor] = field(default_factory=dict)
    truncations: dict[str, Truncation] = field(default_factory=dict)
    nonlinear: dict[object, Nonlinear] = field(default_factory=dict)
    previous: dict[str, Tensor] = field(default_factory=dict)
    sent: dict[str, Tensor] = field(default_factory=dict)
    first: bool = True

    def __call__(self, *frames: Tensor) -> list[Tensor]:
        deltas: dict[fx.Node, Delta] = {}
        given = iter(frames)
        incoming: dict[fx.Node, Tensor] = {}
        outputs: list[Tensor] = []
        for node in self.model._program.plan.graph.graph.nodes:
            if node.op == "placeholder":
                incoming[node] = next(given)
            elif node.target is sparsify:
                frame = incoming[node.args[0]]
                difference = frame if self.first else frame - self.previous[node.name]
                self.previous[node.name] = frame.clone()
                everywhere = torch.ones_like(frame[:, :1], dtype=torch.bool)
                deltas[node] = self.truncate(node, difference, everywhere)
            elif node.target is densify or node.op == "output":
                continue
            else:
                operator = operator_of(node)
                assert operator is not None and node.meta["delta"], f"{node.name} is no delta node"
                value, mask = self.run(node.name, operator, [deltas[source] for source in node.args])
                deltas[node] = self.truncate(node, value, mask)
            if node in deltas:
                value, self.masks[node.name] = deltas[node]
                self.sent[node.name] = value if self.first else self.sent[node.name] + value
        for node in self.model._program.plan.graph.graph.find_nodes(op="output"):
            outputs = [
                incoming[source] if source.op == "placeholder" else self.sent[source.args[0].name].clone()
                for source in node.args[0]
            ]
        self.first = False
        return outputs

    def run(self, key: object, operator: Operator, inputs: list[Delta]) -> Delta:
        if not isinstance(operator, Fused):
            return self.apply(key, operator, inputs)
        value = self.run((key, 0), operator.head, inputs[: operator.head_inputs])
        others, tail = inputs[operator.head_inputs :], list(operator.stages)[1:]
        for i, (stage, count, slot) in enumerate(zip(tail, operator.counts, operator.slots, strict=True)):
            mine, others = others[:count], others[count:]
            value = self.apply((key, i + 1), stage, [*mine[:slot], value, *mine[slot:]])
        return value

    def apply(self, key: object, operator: Operator, inputs: list[Delta]) -> Delta:
        values = [value for value, _ in inputs]
        result = linear_part(operator, values, self.first)
        if result is None:
            result = self.nonlinear.setdefault(key, Nonlinear(operator))(values, self.first)
        size = result.shape[2:]
        mask = torch.ones_like(result[:, :1], dtype=torch.bool)
        if not self.first:
            mask = torch.stack([spread(operator, m, size) for _, m in inputs]).any(0)
        return result, mask

    def truncate(self, node: fx.Node, value: Tensor, mask: Tensor) -> Delta:
        if "threshold" not in node.meta:
            return value, mask
        step = self.truncations.setdefault(node.name, Truncation(node.meta["threshold"]))
        return step(value, mask, self.first)

    def margin(self) -> float:
        return min((step.margin for step in self.truncations.values()), default=float("inf"))
