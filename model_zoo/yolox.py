"""YOLOX (Ge et al. 2021, arXiv 2107.08430): CSPDarknet, PAFPN, heads without anchors, under Megvii's names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.boxes import suppress
from model_zoo.layers import conv_norm
from model_zoo.registry import Recipe, network

STRIDES = (8, 16, 32)
EPS = 1e-3


class BaseConv(nn.Module):
    """Convolution, batch norm, SiLU: (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        # Sums and maxima make maps larger: untrained, with a gain of 1, to deviations of 1400.
        self.conv, self.bn, self.act = conv_norm(inputs, outputs, kernel, stride, 1, nn.SiLU, 0.9, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Focus(nn.Module):
    """Each 2x2 block becomes one pixel of four times the channels: (N, C, H, W) -> (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = BaseConv(4 * inputs, outputs, 3)
        # Their order is top left, bottom left, top right, bottom right, each with all channels.
        self.order = [4 * channel + corner for corner in (0, 2, 1, 3) for channel in range(inputs)]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2)[:, self.order])


class Bottleneck(nn.Module):
    """1x1, 3x3, beside the identity where `residual` says so: (N, width, H, W), same shape out."""

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(width, width)
        self.conv2 = BaseConv(width, width, 3)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class CSPLayer(nn.Module):
    """Half of the channels go through bottlenecks, half pass by: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = BaseConv(inputs, half)
        self.conv2 = BaseConv(inputs, half)
        self.conv3 = BaseConv(outputs, outputs)
        self.m = nn.Sequential(*(Bottleneck(half, residual) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), 1))


class SpatialPyramid(nn.Module):
    """The map beside its maxima over 5x5, 9x9 and 13x13: (N, width, H, W), same shape out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = BaseConv(width, width // 2)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.conv2 = BaseConv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat((x, *(pool(x) for pool in self.m)), 1))


class CSPDarknet(nn.Module):
    """(N, 3, H, W) -> (N, 4w, H/8, W/8), (N, 8w, H/16, W/16), (N, 16w, H/32, W/32), w being the stem's width."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = Focus(3, width)
        self.dark2 = self._stage(2 * width, depth)
        self.dark3 = self._stage(4 * width, 3 * depth)
        self.dark4 = self._stage(8 * width, 3 * depth)
        self.dark5 = nn.Sequential(
            BaseConv(8 * width, 16 * width, 3, 2),
            SpatialPyramid(16 * width),
            CSPLayer(16 * width, 16 * width, depth, residual=False),
        )

    @staticmethod
    def _stage(outputs: int, depth: int) -> nn.Sequential:
        return nn.Sequential(BaseConv(outputs // 2, outputs, 3, 2), CSPLayer(outputs, outputs, depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.dark3(self.dark2(self.stem(x)))
        middle = self.dark4(fine)
        return fine, middle, self.dark5(middle)


class PAFPN(nn.Module):
    """Joins the scales from coarse to fine and back again; shapes as of CSPDarknet."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        fine, middle, coarse = 4 * width, 8 * width, 16 * width
        self.backbone = CSPDarknet(width, depth)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = BaseConv(coarse, middle)
        self.C3_p4 = CSPLayer(2 * middle, middle, depth, residual=False)
        self.reduce_conv1 = BaseConv(middle, fine)
        self.C3_p3 = CSPLayer(2 * fine, fine, depth, residual=False)
        self.bu_conv2 = BaseConv(fine, fine, 3, 2)
        self.C3_n3 = CSPLayer(2 * fine, middle, depth, residual=False)
        self.bu_conv1 = BaseConv(middle, middle, 3, 2)
        self.C3_n4 = CSPLayer(2 * middle, coarse, depth, residual=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.backbone(x)
        coarse = self.lateral_conv0(coarse)
        middle = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(coarse), middle), 1)))
        fine = self.C3_p3(torch.cat((self.upsample(middle), fine), 1))
        middle = self.C3_n3(torch.cat((self.bu_conv2(fine), middle), 1))
        return fine, middle, self.C3_n4(torch.cat((self.bu_conv1(middle), coarse), 1))


class Head(nn.Module):
    """A map of each scale -> (N, 5 + classes, h, w): x, y, width, height, objectness, classes, all raw."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        inner = 4 * width
        self.stems = nn.ModuleList(BaseConv(inner * scale, inner) for scale in (1, 2, 4))
        self.cls_convs, self.reg_convs = (nn.ModuleList(self._tower(inner) for _ in STRIDES) for _ in "cr")
        self.cls_preds = nn.ModuleList(nn.Conv2d(inner, classes, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(inner, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(inner, 1, 1) for _ in STRIDES)

    @staticmethod
    def _tower(width: int) -> nn.Sequential:
        return nn.Sequential(BaseConv(width, width, 3), BaseConv(width, width, 3))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = []
        for scale, x in enumerate(maps):
            x = self.stems[scale](x)
            box, label = self.reg_convs[scale](x), self.cls_convs[scale](x)
            parts = (self.reg_preds[scale](box), self.obj_preds[scale](box), self.cls_preds[scale](label))
            outputs.append(torch.cat(parts, 1))
        return tuple(outputs)


class YOLOX(nn.Module):
    """(N, 3, H, W), BGR 0..255, H and W multiples of 32 -> maps (N, 5 + classes, h, w), h = H/8, H/16 and H/32.

    `decode` reads them.
    """

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.backbone = PAFPN(width, depth)
        self.head = Head(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.backbone(x))


def decode(outputs: tuple[Tensor, ...], confidence: float = 0.3, overlap: float = 0.45) -> list[Tensor]:
    """YOLOX's outputs to one tensor (boxes, 6) a frame, best first.

    A row is x1, y1, x2, y2, score, class, in pixels of the network's input; `overlap` is that of `suppress`.
    """
    frames = []
    for maps in zip(*outputs, strict=True):
        found = torch.cat([_boxes(m.float(), stride) for m, stride in zip(maps, STRIDES, strict=True)])
        frames.append(suppress(found[found[:, 4] > confidence], overlap))
    return frames


def _boxes(x: Tensor, stride: int) -> Tensor:
    """One frame's map (5 + classes, h, w) -> (h * w, 6); the score is objectness times the best class."""
    height, width = x.shape[1:]
    rows = torch.arange(height, device=x.device).view(height, 1)
    columns = torch.arange(width, device=x.device)
    probability, label = x[5:].sigmoid().max(0)
    score = x[4].sigmoid() * probability
    centre = torch.stack((x[0] + columns, x[1] + rows), -1) * stride
    half_size = x[2:4].exp().permute(1, 2, 0) * (stride / 2)
    parts = (centre - half_size, centre + half_size, score[..., None], label[..., None])
    return torch.cat(parts, -1).flatten(0, 1)


@network(
    Recipe(
        name="yolox_s",
        summary="COCO detector of three scales without anchors, CSPDarknet and PAFPN, 13 GMAC at 640x640",
        task="detect",
        input_size=(3, 640, 640),
        channels="bgr",
        scale=1.0,
        multiple=32,
        checkpoint="Megvii-BaseDetection/YOLOX 0.1.1rc0, yolox_s.pth (its entry 'model'); its key names",
    )
)
def yolox_s(classes: int = 80) -> YOLOX:
    """Width 0.5, depth 0.33 of YOLOX-L; `decode` turns its outputs into boxes."""
    return YOLOX(32, 1, classes)
