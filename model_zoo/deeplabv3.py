"""DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) on ResNet-50 at output stride 8, under torchvision's names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.layers import conv, conv_norm
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD, Body, Bottleneck

WIDTH = 256
DILATIONS = (12, 24, 36)


class Pyramid(nn.Module):
    """A 1x1, three dilated 3x3 and a pooled branch side by side, then joined: (N, inputs, H, W) -> (N, 256, H, W)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        dilated = [nn.Sequential(*conv_norm(inputs, WIDTH, 3, dilation=dilation)) for dilation in DILATIONS]
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(inputs, WIDTH))
        self.convs = nn.ModuleList([nn.Sequential(*conv_norm(inputs, WIDTH)), *dilated, pooled])
        self.project = nn.Sequential(*conv_norm(len(self.convs) * WIDTH, WIDTH), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        *maps, pooled = (branch(x) for branch in self.convs)
        whole = F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat((*maps, whole), 1))


class DeepLabV3(nn.Module):
    """(N, 3, H, W) of any size -> (N, classes, H, W) logits."""

    def __init__(self, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.backbone = Body(Bottleneck, depths, dilated=True)
        *_, middle, deep = self.backbone.widths
        self.classifier = nn.Sequential(Pyramid(deep), *conv_norm(WIDTH, WIDTH, 3), conv(WIDTH, classes))
        # A second opinion that only training listens to; the public file has its weights.
        self.aux_classifier = nn.Sequential(
            *conv_norm(middle, middle // 4, 3), nn.Dropout(0.1), conv(middle // 4, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(self.backbone.maps(x)[-1])
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


@network(
    Recipe(
        name="deeplabv3_resnet50",
        summary="segmentation into VOC's 21 classes, dilations up to 36, a pooled branch, 169 GMAC at 520x520",
        task="segment",
        input_size=(3, 520, 520),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision deeplabv3_resnet50_coco-cd0a2569.pth (COCO_WITH_VOC_LABELS_V1); torchvision"
        " key names",
    )
)
def deeplabv3_resnet50(classes: int = 21) -> DeepLabV3:
    """3, 4, 6 and 3 bottlenecks in four stages."""
    return DeepLabV3((3, 4, 6, 3), classes)
