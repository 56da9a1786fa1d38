"""FastestDet (dog-qiuqiu/FastestDet): a COCO detector on ShuffleNetV2, one scale, no anchors."""

import torch
from torch import Tensor, nn

from model_zoo.boxes import suppress
from model_zoo.layers import conv_norm, named
from model_zoo.registry import Recipe, network

STRIDE = 16
# Box sides were learnt as a fraction of this many pixels, whatever the size of the frame now.
TRAINED_SIZE = 352


class ShuffleBlock(nn.Module):
    """(N, C, H, W) -> (N, 2 * half, H/stride, W/stride), C being half at stride 2 and 2 * half at stride 1.

    At stride 1 the even channels pass by and the odd ones are convolved, which is also the channel shuffle.
    """

    def __init__(self, half: int, stride: int) -> None:
        super().__init__()
        depthwise = conv_norm(half, half, 3, stride, groups=half, act=None)
        self.branch_main = nn.Sequential(*conv_norm(half, half), *depthwise, *conv_norm(half, half))
        self.branch_proj = None
        if stride == 2:
            shrink = conv_norm(half, half, 3, stride, groups=half, act=None)
            self.branch_proj = nn.Sequential(*shrink, *conv_norm(half, half))

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is None:
            return torch.cat((x[:, 0::2], self.branch_main(x[:, 1::2])), 1)
        return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)


class Backbone(nn.Module):
    """(N, 3, H, W) -> (N, 48, H/8, W/8), (N, 96, H/16, W/16), (N, 192, H/32, W/32)."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*conv_norm(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = self._stage(24, 4)
        self.stage3 = self._stage(48, 8)
        self.stage4 = self._stage(96, 4)

    @staticmethod
    def _stage(half: int, depth: int) -> nn.Sequential:
        return nn.Sequential(ShuffleBlock(half, 2), *(ShuffleBlock(half, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class Pyramid(nn.Module):
    """One, two and three depthwise 5x5 side by side, then joined: (N, inputs, H, W) -> (N, C, H, W)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = named("conv1x1", conv_norm(inputs, width))
        self.S1, self.S2, self.S3 = (self._chain(width, depth) for depth in (1, 2, 3))
        self.output = nn.Sequential(*conv_norm(3 * width, width, act=None))
        self.relu = nn.ReLU()

    @staticmethod
    def _chain(width: int, depth: int) -> nn.Sequential:
        return nn.Sequential(*(m for _ in range(depth) for m in conv_norm(width, width, 5, groups=width)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return self.relu(x + self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)))


class Head(nn.Module):
    """(N, C, H, W) -> (N, 5 + classes, H, W): objectness, x, y, width, height, class probabilities."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = named("conv1x1", conv_norm(width, width))
        self.obj_layers = self._branch(width, 1)
        self.reg_layers = self._branch(width, 4)
        self.cls_layers = self._branch(width, classes)

    @staticmethod
    def _branch(width: int, outputs: int) -> nn.Sequential:
        depthwise = conv_norm(width, width, 5, groups=width)
        return named("conv5x5", [*depthwise, *conv_norm(width, outputs, act=None)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        return torch.cat((self.obj_layers(x).sigmoid(), self.reg_layers(x), self.cls_layers(x).softmax(1)), 1)


class FastestDet(nn.Module):
    """(N, 3, H, W), BGR / 255, H and W multiples of 32 -> (N, 5 + classes, H/16, W/16), read by `decode`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.SPP = Pyramid(48 + 96 + 192, 96)
        self.detect_head = Head(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        fine, middle, coarse = self.backbone(x)
        return self.detect_head(self.SPP(torch.cat((self.avg_pool(fine), middle, self.upsample(coarse)), 1)))


def decode(output: Tensor, confidence: float = 0.35, overlap: float = 0.45) -> list[Tensor]:
    """FastestDet's output (N, 5 + classes, h, w) to one tensor (boxes, 6) a frame, best first.

    A row is x1, y1, x2, y2, score, class, in pixels of the network's input; `overlap` is that of `suppress`.
    """
    height, width = output.shape[2:]
    rows = torch.arange(height, device=output.device).view(height, 1)
    columns = torch.arange(width, device=output.device)
    frames = []
    for maps in output.float():
        probability, label = maps[5:].max(0)
        score = maps[0] ** 0.6 * probability**0.4
        centre = torch.stack((maps[1].tanh() + columns, maps[2].tanh() + rows), -1) * STRIDE
        half_size = torch.stack((maps[3], maps[4]), -1).sigmoid() * (TRAINED_SIZE / 2)
        found = torch.cat((centre - half_size, centre + half_size, score[..., None], label[..., None]), -1)
        frames.append(suppress(found[score > confidence], overlap))
    return frames


@network(
    Recipe(
        name="fastestdet",
        summary="COCO detector, channel shuffle, depthwise 3x3 and 5x5, 0.24 GMAC at 352x352",
        task="detect",
        input_size=(3, TRAINED_SIZE, TRAINED_SIZE),
        channels="bgr",
        multiple=32,
        checkpoint="dog-qiuqiu/FastestDet weights/weight_AP05:0.253207_280-epoch.pth; its key names",
    )
)
def fastestdet(classes: int = 80) -> FastestDet:
    """`decode` turns its output into boxes."""
    return FastestDet(classes)
