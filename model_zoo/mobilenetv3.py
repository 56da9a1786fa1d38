"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244) under torchvision's names."""

from torch import Tensor, nn

from model_zoo.layers import MBConv, SqueezeExcitation, conv_norm
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD

EPS = 1e-3
Block = tuple[int, int, int, bool, type[nn.Module], int]

# Tables 1 and 2 of the paper: kernel, hidden channels, output channels, squeeze-excitation, activation, stride.
LARGE: tuple[Block, ...] = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
SMALL: tuple[Block, ...] = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)


def excitation(hidden: int) -> SqueezeExcitation:
    """Squeezed to a quarter in whole eights, rounded up where the nearest is less than nine tenths of it."""
    quarter = hidden // 4
    eights = max(8, (quarter + 4) // 8 * 8)
    squeezed = eights + 8 if eights < 0.9 * quarter else eights
    return SqueezeExcitation(hidden, squeezed, nn.ReLU, nn.Hardsigmoid)


class MobileNetV3(nn.Module):
    """(N, 3, H, W) of any size -> (N, classes) logits."""

    def __init__(self, blocks: tuple[Block, ...], width: int, classes: int) -> None:
        super().__init__()
        inputs = 16
        features: list[nn.Module] = [nn.Sequential(*conv_norm(3, inputs, 3, 2, act=nn.Hardswish, eps=EPS))]
        for kernel, hidden, outputs, excites, act, stride in blocks:
            gate = excitation(hidden) if excites else None
            features.append(MBConv(inputs, hidden, outputs, kernel, stride, act, gate, EPS))
            inputs = outputs
        features.append(nn.Sequential(*conv_norm(inputs, 6 * inputs, act=nn.Hardswish, eps=EPS)))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        hidden_layer = nn.Linear(6 * inputs, width)
        self.classifier = nn.Sequential(
            hidden_layer, nn.Hardswish(), nn.Dropout(0.2), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


@network(
    Recipe(
        name="mobilenetv3_large",
        summary="ImageNet classifier of 15 inverted residuals, squeeze-excitation, hard swish, 0.2 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision mobilenet_v3_large-5c1a4163.pth (IMAGENET1K_V2) or"
        " mobilenet_v3_large-8738ca79.pth (V1); torchvision key names",
    )
)
def mobilenetv3_large(classes: int = 1000) -> MobileNetV3:
    """Width 1.0."""
    return MobileNetV3(LARGE, 1280, classes)


@network(
    Recipe(
        name="mobilenetv3_small",
        summary="ImageNet classifier of 11 inverted residuals, squeeze-excitation, hard swish, 0.06 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision mobilenet_v3_small-047dcff4.pth (IMAGENET1K_V1); torchvision key names",
    )
)
def mobilenetv3_small(classes: int = 1000) -> MobileNetV3:
    """Width 1.0."""
    return MobileNetV3(SMALL, 1024, classes)
