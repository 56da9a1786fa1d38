"""HRNet for poses (Sun et al. 2019, arXiv 1902.09212) under its authors' names."""

from torch import Tensor, nn

from model_zoo.layers import conv, conv_norm
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD, BasicBlock, Bottleneck, stage

STEM = 64
BLOCKS = 4  # of each map, between two exchanges
# How much a block or another map adds at first. With 1, activations would grow to a deviation of 10^5.
GAIN = 0.3


class Exchange(nn.Module):
    """Blocks on each map; then each of the first `outputs` becomes the sum of all, brought to its size.

    Map i is (N, widths[i], H / 2^i, W / 2^i).
    """

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width, gain=GAIN) for _ in range(BLOCKS))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict({str(i): _path(widths, i, own) for i in range(len(widths)) if i != own})
            for own in range(outputs)
        )
        self.relu = nn.ReLU()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        sums = maps[: len(self.fuse_layers)]
        for own, paths in enumerate(self.fuse_layers):
            for i, path in paths.named_children():
                sums[own] = sums[own] + path(maps[int(i)])
        return [self.relu(x) for x in sums]


def _path(widths: tuple[int, ...], start: int, end: int) -> nn.Sequential:
    """From map `start` to the width and size of map `end`."""
    if start > end:
        grow = nn.Upsample(scale_factor=2 ** (start - end), mode="nearest")
        return nn.Sequential(*conv_norm(widths[start], widths[end], act=None, gain=GAIN), grow)
    halve = [nn.Sequential(*conv_norm(widths[start], widths[start], 3, 2)) for _ in range(end - start - 1)]
    last = nn.Sequential(*conv_norm(widths[start], widths[end], 3, 2, act=None, gain=GAIN))
    return nn.Sequential(*halve, last)


class HRNet(nn.Module):
    """(N, 3, H, W), H and W multiples of 32 -> (N, joints, H/4, W/4): a heat map for each joint."""

    def __init__(self, width: int, joints: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        self.conv1, self.bn1, self.relu1 = conv_norm(3, STEM, 3, 2)
        self.conv2, self.bn2, self.relu2 = conv_norm(STEM, STEM, 3, 2)
        self.layer1 = stage(Bottleneck, STEM, 64, 4, 1)
        first = nn.Sequential(*conv_norm(64 * Bottleneck.expansion, widths[0], 3))
        self.transition1 = nn.ModuleDict({"0": first, "1": _halved(64 * Bottleneck.expansion, widths[1])})
        self.stage2 = nn.Sequential(Exchange(widths[:2], 2))
        self.transition2 = nn.ModuleDict({"2": _halved(widths[1], widths[2])})
        self.stage3 = nn.Sequential(*(Exchange(widths[:3], 3) for _ in range(4)))
        self.transition3 = nn.ModuleDict({"3": _halved(widths[2], widths[3])})
        self.stage4 = nn.Sequential(*(Exchange(widths, outputs) for outputs in (4, 4, 1)))
        self.final_layer = conv(width, joints)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer1(self.relu2(self.bn2(self.conv2(x))))
        maps = self.stage2([self.transition1["0"](x), self.transition1["1"](x)])
        maps = self.stage3([*maps, self.transition2["2"](maps[-1])])
        maps = self.stage4([*maps, self.transition3["3"](maps[-1])])
        return self.final_layer(maps[0])


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(*conv_norm(inputs, outputs, 3, 2)))


@network(
    Recipe(
        name="hrnet_w32",
        summary="17 joints by heat maps, maps of four sizes side by side, 7.6 GMAC at 256x192",
        task="pose",
        input_size=(3, 256, 192),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        multiple=32,
        checkpoint="leoxiaobin/deep-high-resolution-net.pytorch pose_hrnet_w32_256x192.pth or _384x288.pth"
        " (COCO); its key names. Human3.6M has 17 joints too",
    )
)
def hrnet_w32(joints: int = 17) -> HRNet:
    """32, 64, 128 and 256 channels. `poses.joints` reads its output."""
    return HRNet(32, joints)
