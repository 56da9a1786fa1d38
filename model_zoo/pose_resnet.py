"""Simple Baselines for poses (Xiao et al. 2018, arXiv 1804.06208) under its authors' names."""

from torch import Tensor, nn

from model_zoo.layers import conv
from model_zoo.registry import Recipe, network
from model_zoo.resnet import IMAGENET_MEAN, IMAGENET_STD, Body, Bottleneck

WIDTH = 256


class PoseResNet(Body):
    """(N, 3, H, W), H and W multiples of 32 -> (N, joints, H/4, W/4): a heat map for each joint."""

    def __init__(self, depths: tuple[int, int, int, int], joints: int) -> None:
        super().__init__(Bottleneck, depths)
        layers: list[nn.Module] = []
        for inputs in (self.widths[-1], WIDTH, WIDTH):
            doubling = nn.ConvTranspose2d(inputs, WIDTH, 4, 2, 1, bias=False)
            # Each output pixel sums 2 x 2 of the kernel's 4 x 4 taps over all inputs.
            nn.init.normal_(doubling.weight, std=(2 / (4 * inputs)) ** 0.5)
            layers += [doubling, nn.BatchNorm2d(WIDTH), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = conv(WIDTH, joints)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(self.maps(x)[-1]))


@network(
    Recipe(
        name="pose_resnet50",
        summary="17 joints by heat maps, ResNet-50 and three transposed convolutions, 5.4 GMAC at 256x192",
        task="pose",
        input_size=(3, 256, 192),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        multiple=32,
        checkpoint="microsoft/human-pose-estimation.pytorch pose_resnet_50_256x192.pth.tar (COCO); its key"
        " names. Human3.6M has 17 joints too",
    )
)
def pose_resnet50(joints: int = 17) -> PoseResNet:
    """`poses.joints` reads its output."""
    return PoseResNet((3, 4, 6, 3), joints)
