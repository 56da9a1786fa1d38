"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) under torchvision's names."""

import torch
from torch import Tensor, nn

from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD

EPS = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """The norm of each pixel's channels: (N, C, H, W), same shape out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """The same dimensions in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Block(nn.Module):
    """Depthwise 7x7, then widened to four times and back at each pixel, beside the identity: (N, width, H, W).

    The paper starts `layer_scale` at 1e-6; untrained, a block would then add nothing that a test could see.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
    """(N, 3, H, W), from 32 pixels on -> (N, classes) logits."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        features = [nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], EPS))]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                shrink = nn.Conv2d(widths[stage - 1], width, 2, 2)
                features.append(nn.Sequential(LayerNorm2d(widths[stage - 1], EPS), shrink))
            features.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(widths[-1], EPS), nn.Flatten(), nn.Linear(widths[-1], classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


@network(
    Recipe(
        name="convnext_tiny",
        summary="ImageNet classifier of 18 blocks, depthwise 7x7, layer norms, GELU, 4.5 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision convnext_tiny-983f1562.pth (IMAGENET1K_V1); torchvision key names",
    )
)
def convnext_tiny(classes: int = 1000) -> ConvNeXt:
    """Four stages of 96 to 768 channels."""
    return ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3), classes)
