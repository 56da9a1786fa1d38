"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) under torchvision's names."""

from torch import Tensor, nn

from model_zoo.layers import conv_norm
from model_zoo.registry import Recipe, network

# Table 2 of the paper: expansion, output channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen 1x1, depthwise 3x3, narrow 1x1 (linear): (N, C, H, W) -> (N, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [nn.Sequential(*conv_norm(inputs, hidden, act=nn.ReLU6))] if expansion != 1 else []
        depthwise = nn.Sequential(*conv_norm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        self.conv = nn.Sequential(*widen, depthwise, *conv_norm(hidden, outputs, act=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(N, 3, H, W) of any size -> (N, classes) logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(*conv_norm(3, 32, 3, 2, act=nn.ReLU6))]
        inputs = 32
        for expansion, outputs, depth, stride in STAGES:
            for block in range(depth):
                features.append(InvertedResidual(inputs, outputs, expansion, 1 if block else stride))
                inputs = outputs
        features.append(nn.Sequential(*conv_norm(inputs, 1280, act=nn.ReLU6)))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(x))))


@network(
    Recipe(
        name="mobilenetv2",
        summary="ImageNet classifier of 17 inverted residuals (depthwise 3x3, ReLU6), 0.3 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        checkpoint="torchvision mobilenet_v2-7ebf99e0.pth (IMAGENET1K_V2) or mobilenet_v2-b0353104.pth (V1);"
        " torchvision key names",
    )
)
def mobilenetv2(classes: int = 1000) -> MobileNetV2:
    """Width 1.0."""
    return MobileNetV2(classes)
