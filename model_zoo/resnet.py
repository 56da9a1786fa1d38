"""ResNet (He et al. 2015, arXiv 1512.03385) under torchvision's names, the stride on the 3x3 ("v1.5")."""

from torch import Tensor, nn

from model_zoo.layers import conv_norm
from model_zoo.registry import Recipe, network

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity: (N, C, H, W) -> (N, width, H/stride, W/stride).

    `gain` scales what the branch adds at first.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        dilation: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv_norm(inputs, width, 3, stride, dilation=dilation)
        self.conv2, self.bn2 = conv_norm(width, width, 3, act=None, gain=gain)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + skip)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside the identity: (N, C, H, W) -> (N, 4 * width, H/stride, W/stride)."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv_norm(inputs, width)
        self.conv2, self.bn2, self.relu2 = conv_norm(width, width, 3, stride, dilation=dilation)
        self.conv3, self.bn3 = conv_norm(width, width * self.expansion, act=None)
        self.downsample = downsample
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + skip)


Block = type[BasicBlock] | type[Bottleneck]


class Body(nn.Module):
    """All of a ResNet but its head; `maps` runs it.

    dilated: stages 3 and 4 keep H/8 and dilate their 3x3 convolutions instead (torchvision's segmentation).
    """

    def __init__(self, block: Block, depths: tuple[int, int, int, int], dilated: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv_norm(3, 64, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.widths = [width * block.expansion for width in (64, 128, 256, 512)]
        self.layer1 = stage(block, 64, 64, depths[0], 1)
        self.layer2 = stage(block, self.widths[0], 128, depths[1], 2)
        if dilated:
            self.layer3 = stage(block, self.widths[1], 256, depths[2], 1, (1, 2))
            self.layer4 = stage(block, self.widths[2], 512, depths[3], 1, (2, 4))
        else:
            self.layer3 = stage(block, self.widths[1], 256, depths[2], 2)
            self.layer4 = stage(block, self.widths[2], 512, depths[3], 2)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) of any size -> maps of `widths` channels at H/4, H/8, H/16 and H/32, rounded up."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)


class ResNet(Body):
    """(N, 3, H, W) of any size -> (N, classes) logits."""

    def __init__(self, block: Block, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__(block, depths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(self.widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.avgpool(self.maps(x)[-1])))


def stage(
    block: Block, inputs: int, width: int, depth: int, stride: int, dilations: tuple[int, int] = (1, 1)
) -> nn.Sequential:
    """Blocks in a row; `dilations` are those of the first and of the others."""
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(*conv_norm(inputs, outputs, stride=stride, act=None))
    first = block(inputs, width, stride, downsample, dilations[0])
    return nn.Sequential(first, *(block(outputs, width, dilation=dilations[1]) for _ in range(depth - 1)))


@network(
    Recipe(
        name="resnet18",
        summary="ImageNet classifier of 8 basic residual blocks, 1.8 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision resnet18-f37072fd.pth (IMAGENET1K_V1); torchvision key names",
    )
)
def resnet18(classes: int = 1000) -> ResNet:
    """Two basic blocks in each of four stages."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes)


@network(
    Recipe(
        name="resnet50",
        summary="ImageNet classifier of 16 bottleneck residual blocks, 4.1 GMAC at 224x224",
        task="classify",
        input_size=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        checkpoint="torchvision resnet50-11ad3fa6.pth (IMAGENET1K_V2) or resnet50-0676ba61.pth (V1);"
        " torchvision key names",
    )
)
def resnet50(classes: int = 1000) -> ResNet:
    """3, 4, 6 and 3 bottlenecks in four stages."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
