"""EfficientDet (Tan et al. 2020, arXiv 1911.09070) under the names of rwightman/efficientdet-pytorch."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.boxes import best, by_anchor, suppress
from model_zoo.efficientnet import STAGES
from model_zoo.layers import EXCITED_GAIN, SqueezeExcitation, activation_gain, kaiming
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD

STRIDES = (8, 16, 32, 64, 128)
ANCHOR = 4  # side of the smallest anchor, in cells of its level
SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))
SHAPES = ((1.0, 1.0), (0.7, 1.4), (1.4, 0.7))  # height and width
ANCHORS = len(SCALES) * len(SHAPES)

# The maps that each node of a BiFPN joins: 0 to 4 are the levels that come in, fine to coarse, 5 and on the nodes
# before. The last of them is another level's: a coarser one in the first four nodes, then a finer one.
NODES = ((3, 4), (2, 5), (1, 6), (0, 7), (1, 7, 8), (2, 6, 9), (3, 5, 10), (4, 11))


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Padded for ceil(side / stride) windows, as TensorFlow does: what is odd comes at the bottom and right."""
    height, width = x.shape[2], x.shape[3]
    rows = (height - 1) // stride * stride + kernel - height
    columns = (width - 1) // stride * stride + kernel - width
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=value)


class Conv(nn.Conv2d):
    """Pads as `same`: (N, inputs, H, W) -> (N, outputs, ceil(H/stride), ceil(W/stride))."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        gain: float = 1.0,
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        kaiming(self, gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # At stride 1 both sides are padded alike.
        return super().forward(x if self.stride == (1, 1) else same(x, self.kernel_size[0], self.stride[0]))


class Pool(nn.Module):
    """Maxima over 3x3, padded as `same`: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(same(x, 3, 2, -math.inf), 3, 2)


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedResidual(nn.Sequential):
    """MBConv under timm's names: (N, inputs, H, W) -> (N, outputs, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        hidden, gain = inputs * expansion, activation_gain(nn.SiLU)
        depthwise = Conv(hidden, hidden, kernel, stride, hidden, gain=gain)
        gate = SqueezeExcitation(
            hidden, inputs // 4, nn.SiLU, nn.Sigmoid, names=("conv_reduce", "conv_expand")
        )
        narrow = Conv(hidden, outputs, gain=EXCITED_GAIN)
        layers: dict[str, nn.Module] = {"conv_dw": depthwise, "bn1": norm(hidden), "act1": nn.SiLU()}
        layers |= {"se": gate, "conv_pw": narrow, "bn2": norm(outputs)}
        if expansion != 1:
            layers = {"conv_pw": Conv(inputs, hidden, gain=gain), "bn1": norm(hidden), "act1": nn.SiLU()}
            layers |= {"conv_dw": depthwise, "bn2": norm(hidden), "act2": nn.SiLU()}
            layers |= {"se": gate, "conv_pwl": narrow, "bn3": norm(outputs)}
        super().__init__(OrderedDict(layers))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.residual else y


class Backbone(nn.Module):
    """EfficientNet, `deeper` times B0's blocks: (N, 3, H, W) -> maps of 40, 112, 320 channels at H/8, H/16, H/32."""

    widths = (40, 112, 320)

    def __init__(self, deeper: float) -> None:
        super().__init__()
        inputs = 32
        self.conv_stem = Conv(3, inputs, 3, 2, gain=activation_gain(nn.SiLU))
        self.bn1, self.act1 = norm(inputs), nn.SiLU()
        self.blocks = nn.ModuleList()
        for expansion, kernel, stride, outputs, depth in STAGES:
            blocks = []
            for block in range(math.ceil(depth * deeper)):
                blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, 1 if block else stride))
                inputs = outputs
            self.blocks.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.act1(self.bn1(self.conv_stem(x)))
        maps = []
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return [maps[2], maps[4], maps[6]]


class SeparableConv(nn.Module):
    """Depthwise 3x3, 1x1, and a norm if asked for: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0, normed: bool = False) -> None:
        super().__init__()
        self.conv_dw = Conv(inputs, inputs, 3, groups=inputs, gain=0.5)
        # Near the identity at first: coarse levels of small frames are one pixel, which padding leaves one tap of nine.
        with torch.no_grad():
            self.conv_dw.weight += nn.init.dirac_(torch.empty_like(self.conv_dw.weight), groups=inputs)
        self.conv_pw = Conv(inputs, outputs, bias=True, gain=gain)
        self.bn = norm(outputs) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv_pw(self.conv_dw(x)))


def lateral(inputs: int, width: int, **layers: nn.Module) -> nn.Sequential:
    """(N, inputs, H, W) -> (N, width, H, W), and then `layers`."""
    conv = nn.Sequential(OrderedDict(conv=Conv(inputs, width, bias=True), bn=norm(width)))
    return nn.Sequential(OrderedDict(conv=conv, **layers))


class Combine(nn.Module):
    """Fast normalised fusion (section 3.3): the mean of maps of one size, weighted by learnt weights from 0 on.

    resample: what brings the maps to one width, by their place in the BiFPN.
    """

    def __init__(self, count: int, resample: dict[str, nn.Module]) -> None:
        super().__init__()
        self.edge_weights = nn.Parameter(torch.ones(count))
        self.resample = nn.ModuleDict(resample)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = self.edge_weights.relu()
        shares = weights / (weights.sum() + 1e-4)
        joined = maps[0] * shares[0]
        for place in range(1, len(maps)):
            joined = joined + maps[place] * shares[place]
        return joined


class Node(nn.Module):
    """Joins maps of one level with one of a neighbouring level: (N, width, h, w)."""

    def __init__(self, place: int, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.sources = NODES[place]
        narrow = [source for source in self.sources if source < 5 and widths[source] != width]
        resample: dict[str, nn.Module] = {str(source): lateral(widths[source], width) for source in narrow}
        self.combine = Combine(len(self.sources), resample)
        conv = SeparableConv(width, width, activation_gain(nn.SiLU), normed=True)
        self.after_combine = nn.Sequential(OrderedDict(act=nn.SiLU(), conv=conv))
        self.pool = Pool() if place >= 4 else None

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        maps = []
        for source in self.sources:
            x, key = levels[source], str(source)
            maps.append(self.combine.resample[key](x) if key in self.combine.resample else x)
        if self.pool is None:
            maps[-1] = F.interpolate(maps[-1], size=maps[0].shape[2:], mode="nearest")
        else:
            maps[-1] = self.pool(maps[-1])
        return self.after_combine(self.combine(maps))


class Cell(nn.Module):
    """One BiFPN: five levels of `widths` channels, fine to coarse -> five of `width`."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.fnode = nn.ModuleList(Node(place, widths, width) for place in range(len(NODES)))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = list(levels)
        for node in self.fnode:
            levels.append(node(levels))
        return levels[-5:]


class Pyramid(nn.Module):
    """Maps at H/8, H/16, H/32 -> five levels of `width` channels at STRIDES, through `depth` cells."""

    def __init__(self, widths: Sequence[int], width: int, depth: int) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"3": lateral(widths[-1], width, downsample=Pool()), "4": Pool()})
        first = Cell((*widths, width, width), width)
        self.cell = nn.Sequential(first, *(Cell([width] * 5, width) for _ in range(depth - 1)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = list(maps)
        for resample in self.resample.values():
            levels.append(resample(levels[-1]))
        return self.cell(levels)


class Head(nn.Module):
    """Each level (N, width, h, w) -> (N, outputs, h, w). Convolutions are shared by the levels, norms are not."""

    def __init__(self, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        gain = activation_gain(nn.SiLU)
        self.conv_rep = nn.ModuleList(SeparableConv(width, width, gain) for _ in range(depth))
        self.bn_rep = nn.ModuleList(
            nn.ModuleList(nn.Sequential(OrderedDict(bn=norm(width))) for _ in STRIDES) for _ in range(depth)
        )
        self.act = nn.SiLU()
        self.predict = SeparableConv(width, outputs)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        outputs = []
        norms_of_levels = zip(*(norms.children() for norms in self.bn_rep), strict=True)
        for x, norms in zip(levels, norms_of_levels, strict=True):
            for conv, bn in zip(self.conv_rep, norms, strict=True):
                x = self.act(bn(conv(x)))
            outputs.append(self.predict(x))
        return outputs


class EfficientDet(nn.Module):
    """(N, 3, H, W) of any size -> five pairs (logits, steps), fine to coarse, read by `decode`.

    logits (N, 9 * classes, h, w) and steps (N, 9 * 4, h, w), h being H divided by each of STRIDES, rounded up.
    """

    def __init__(self, deeper: float, width: int, cells: int, depth: int, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(deeper)
        self.fpn = Pyramid(self.backbone.widths, width, cells)
        self.class_net = Head(width, depth, ANCHORS * classes)
        self.box_net = Head(width, depth, ANCHORS * 4)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        levels = self.fpn(self.backbone(x))
        return list(zip(self.class_net(levels), self.box_net(levels), strict=True))


def decode(
    output: list[tuple[Tensor, Tensor]], confidence: float = 0.3, overlap: float = 0.5
) -> list[Tensor]:
    """EfficientDet's output to one tensor (boxes, 6) a frame, best first.

    A row is x1, y1, x2, y2, score, class, in pixels of the network's input; class 0 is COCO's category 1;
    `overlap` is that of `suppress`.
    """
    found = [_candidates(*maps, stride, confidence) for maps, stride in zip(output, STRIDES, strict=True)]
    return [suppress(torch.cat(levels), overlap) for levels in zip(*found, strict=True)]


def _candidates(logits: Tensor, steps: Tensor, stride: int, confidence: float) -> list[Tensor]:
    """The best boxes of one level, (boxes, 6) a frame."""
    height, width = logits.shape[2:]
    centres, sides = (places.to(logits.device) for places in anchors(stride, height, width))
    logits, steps = (by_anchor(maps.float(), ANCHORS) for maps in (logits, steps))
    frames = []
    for scores, moves in zip(logits.sigmoid(), steps, strict=True):
        score, anchor, label = best(scores, confidence)
        centre = centres[anchor] + moves[anchor, :2] * sides[anchor]
        half_size = moves[anchor, 2:].exp() * sides[anchor] / 2
        # Rows come before columns in anchors and steps.
        corners = torch.cat(((centre - half_size).flip(1), (centre + half_size).flip(1)), 1)
        frames.append(torch.cat((corners, score[:, None], label[:, None]), 1))
    return frames


def anchors(stride: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The anchors of each cell of a level, row by row: centres and sides (h * w * 9, 2), as y and x in pixels."""
    rows, columns = ((torch.arange(side) + 0.5) * stride for side in (height, width))
    cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 1, 2)
    sides = (torch.tensor(SCALES).view(-1, 1, 1) * torch.tensor(SHAPES) * (ANCHOR * stride)).view(1, -1, 2)
    centres, sides = torch.broadcast_tensors(cells, sides)
    return centres.flatten(0, 1), sides.flatten(0, 1)


@network(
    Recipe(
        name="efficientdet_d0",
        summary="COCO detector, EfficientNet-B0, 3 BiFPN cells of 64 channels, 9 anchors a cell, 2.5 GMAC at 512x512",
        task="detect",
        input_size=(3, 512, 512),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="rwightman/efficientdet-pytorch v0.1, tf_efficientdet_d0_34-f153e0cf.pth; effdet key names",
    )
)
def efficientdet_d0(classes: int = 90) -> EfficientDet:
    """`decode` turns its output into boxes."""
    return EfficientDet(1.0, 64, 3, 3, classes)


@network(
    Recipe(
        name="efficientdet_d1",
        summary="COCO detector, EfficientNet-B1, 4 BiFPN cells of 88 channels, 9 anchors a cell, 6 GMAC at 640x640",
        task="detect",
        input_size=(3, 640, 640),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="rwightman/efficientdet-pytorch v0.1, tf_efficientdet_d1_40-a30f94af.pth; effdet key names",
    )
)
def efficientdet_d1(classes: int = 90) -> EfficientDet:
    """`decode` turns its output into boxes."""
    return EfficientDet(1.1, 88, 4, 3, classes)
