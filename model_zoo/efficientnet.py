"""EfficientNet (Tan and Le 2019, arXiv 1905.11946) under torchvision's names."""

from torch import Tensor, nn

from model_zoo.layers import MBConv, SqueezeExcitation, conv_norm
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD

# Table 1 of the paper: expansion, kernel, stride of the first block, output channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(nn.Module):
    """(N, 3, H, W) of any size -> (N, classes) logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        inputs = 32
        features = [nn.Sequential(*conv_norm(3, inputs, 3, 2, act=nn.SiLU))]
        for expansion, kernel, stride, outputs, depth in STAGES:
            blocks = []
            for block in range(depth):
                hidden = inputs * expansion
                gate = SqueezeExcitation(hidden, inputs // 4, nn.SiLU, nn.Sigmoid)
                blocks.append(MBConv(inputs, hidden, outputs, kernel, 1 if block else stride, nn.SiLU, gate))
                inputs = outputs
            features.append(nn.Sequential(*blocks))
        features.append(nn.Sequential(*conv_norm(inputs, 1280, act=nn.SiLU)))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


@network(
    Recipe(
        name="efficientnet_b0",
        summary="ImageNet classifier of 16 inverted residuals, squeeze-excitation, SiLU, 0.4 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision efficientnet_b0_rwightman-7f5810bc.pth (IMAGENET1K_V1); torchvision key names",
    )
)
def efficientnet_b0(classes: int = 1000) -> EfficientNet:
    """Depth and width 1.0."""
    return EfficientNet(classes)
