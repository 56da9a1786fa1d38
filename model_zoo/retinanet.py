"""RetinaNet (Lin et al. 2017, arXiv 1708.02002) on ResNet-50 and a feature pyramid.

The names are those in torchvision's public file, which torchvision itself renames when it loads it: it now calls
`head.*.conv.2` `conv.1.0`, and `inner_blocks.0` `inner_blocks.0.0`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.boxes import best, by_anchor, suppress
from model_zoo.layers import conv, conv_act
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD, Body, Bottleneck

WIDTH = 256
SIZES = (32, 64, 128, 256, 512)  # of the smallest anchor of each level, in pixels of the input
SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)  # height by width
ANCHORS = len(SCALES) * len(RATIOS)
NOTHING = -math.log(99)  # the logit of 0.01, where the paper lets all scores start
NO_EPS = 1e-30  # of a norm without one: torch 2.11 refuses zero
LARGEST_STEP = math.log(1000 / 16)  # of a box's side, as a logarithm


class TopLevels(nn.Module):
    """Two more levels: (N, C, H, W) -> (N, C, H/2, W/2), (N, C, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.p6 = conv(WIDTH, WIDTH, 3, 2)
        self.relu = nn.ReLU()
        self.p7 = conv(WIDTH, WIDTH, 3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(x)
        return p6, self.p7(self.relu(p6))


class Pyramid(nn.Module):
    """Maps at H/8, H/16 and H/32 -> maps of 256 channels at H/8, H/16, H/32, H/64 and H/128."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(conv(width, WIDTH) for width in widths)
        self.layer_blocks = nn.ModuleList(conv(WIDTH, WIDTH, 3) for _ in widths)
        self.extra_blocks = TopLevels()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """From coarse to fine each map is doubled and added to the next."""
        inner = [block(x) for block, x in zip(self.inner_blocks, maps, strict=True)]
        for level in (1, 0):
            coarse = F.interpolate(inner[level + 1], size=inner[level].shape[2:], mode="nearest")
            inner[level] = inner[level] + coarse
        levels = [block(x) for block, x in zip(self.layer_blocks, inner, strict=True)]
        return [*levels, *self.extra_blocks(levels[-1])]


class Backbone(nn.Module):
    """(N, 3, H, W) -> the five levels of `Pyramid`."""

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.body = Body(Bottleneck, depths)
        for norm in self.body.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = NO_EPS  # the public weights were trained with a frozen norm that has none
        self.fpn = Pyramid(self.body.widths[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        _, *maps = self.body.maps(x)
        return self.fpn(maps)


class Classification(nn.Module):
    """(N, 256, h, w) -> (N, anchors * classes, h, w), logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = _tower()
        self.cls_logits = conv(WIDTH, ANCHORS * classes, 3)
        self.cls_logits.bias = nn.Parameter(torch.full((ANCHORS * classes,), NOTHING))

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_logits(self.conv(x))


class Regression(nn.Module):
    """(N, 256, h, w) -> (N, anchors * 4, h, w): what moves and scales each anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _tower()
        self.bbox_reg = conv(WIDTH, ANCHORS * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bbox_reg(self.conv(x))


def _tower() -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(4) for layer in conv_act(WIDTH, WIDTH, 3)))


class RetinaNet(nn.Module):
    """(N, 3, H, W), H and W multiples of 32 -> five pairs (logits, steps), fine to coarse, read by `decode`.

    logits (N, 9 * classes, h, w) and steps (N, 9 * 4, h, w), with h = H/8, H/16, H/32, H/64 and H/128, rounded up.
    """

    def __init__(self, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(depths)
        heads = {"classification_head": Classification(classes), "regression_head": Regression()}
        self.head = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        classify, regress = self.head.values()
        return [(classify(level), regress(level)) for level in self.backbone(x)]


def decode(
    output: list[tuple[Tensor, Tensor]], size: tuple[int, int], confidence: float = 0.05, overlap: float = 0.5
) -> list[Tensor]:
    """RetinaNet's output for frames of size (H, W) to one tensor (boxes, 6) a frame, best first.

    A row is x1, y1, x2, y2, score, class, in pixels of the network's input; `overlap` is that of `suppress`.
    """
    found = [_candidates(*maps, side, size, confidence) for maps, side in zip(output, SIZES, strict=True)]
    return [suppress(torch.cat(levels), overlap) for levels in zip(*found, strict=True)]


def _candidates(
    logits: Tensor, steps: Tensor, side: int, size: tuple[int, int], confidence: float
) -> list[Tensor]:
    """The best boxes of one level, (boxes, 6) a frame."""
    height, width = logits.shape[2:]
    places = anchors(side, (height, width), size).to(logits.device)
    logits, steps = (by_anchor(maps.float(), ANCHORS) for maps in (logits, steps))
    frames = []
    for scores, moves in zip(logits.sigmoid(), steps, strict=True):
        score, anchor, label = best(scores, confidence)
        boxes = _moved(places[anchor], moves[anchor])
        limits = boxes.new_tensor([size[1], size[0]]).repeat(2)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        frames.append(torch.cat((boxes, score[:, None], label[:, None]), 1))
    return frames


def _moved(anchors: Tensor, steps: Tensor) -> Tensor:
    """Boxes (n, 4) moved by shares of their sides and scaled by exponents."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + sides / 2 + steps[:, :2] * sides
    half = sides / 2 * steps[:, 2:].clamp(max=LARGEST_STEP).exp()
    return torch.cat((centre - half, centre + half), 1)


def anchors(side: int, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h * w * 9, 4): the anchors of each cell of a level, row by row, as x1, y1, x2, y2.

    Sides and spacing (`size` by `cells`) are whole pixels, rounded down, as the public weights were trained.
    """
    shapes = torch.tensor([(ratio**-0.5, ratio**0.5) for ratio in RATIOS])
    lengths = torch.tensor([int(side * scale) for scale in SCALES])
    half = (shapes[:, None] * lengths[:, None] / 2).flatten(0, 1)
    box = torch.cat((-half, half), 1).round()
    rows, columns = (torch.arange(n) * (whole // n) for n, whole in zip(cells, size, strict=True))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corner = torch.stack((x, y, x, y), -1).flatten(0, 1)
    return (corner[:, None] + box).flatten(0, 1)


@network(
    Recipe(
        name="retinanet_resnet50_fpn",
        summary="COCO detector, feature pyramid of five levels, 9 anchors a cell, 152 GMAC at 800x800",
        task="detect",
        input_size=(3, 800, 800),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        multiple=32,
        checkpoint="torchvision retinanet_resnet50_fpn_coco-eeacb38b.pth (COCO_V1); the key names in that file",
    )
)
def retinanet_resnet50_fpn(classes: int = 91) -> RetinaNet:
    """`decode` turns its output into boxes."""
    return RetinaNet((3, 4, 6, 3), classes)
