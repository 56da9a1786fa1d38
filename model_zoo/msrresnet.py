"""SRResNet without batch norm (Ledig et al. 2017, arXiv 1609.04802; MSRResNet) under BasicSR's names."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.layers import conv, conv_act
from model_zoo.registry import Recipe, network

WIDTH = 64
# How much a block adds at first. With 1, each of the sixteen would double the second moment.
GAIN = 0.3

leaky = partial(nn.LeakyReLU, 0.1)


class Block(nn.Module):
    """Two 3x3 convolutions beside the identity: N C H W -> N C H W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.relu = conv_act(width, width, 3)
        self.conv2 = conv(width, width, 3, gain=GAIN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class MSRResNet(nn.Module):
    """(N, 3, H, W) in 0..1, of any size -> (N, 3, 4H, 4W)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv_first, self.lrelu = conv_act(3, WIDTH, 3, act=leaky)
        self.body = nn.Sequential(*(Block(WIDTH) for _ in range(blocks)))
        self.upconv1, self.lrelu1 = conv_act(WIDTH, 4 * WIDTH, 3, act=leaky)
        self.upconv2, self.lrelu2 = conv_act(WIDTH, 4 * WIDTH, 3, act=leaky)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.conv_hr, self.lrelu3 = conv_act(WIDTH, WIDTH, 3, act=leaky)
        self.conv_last = conv(WIDTH, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.lrelu(self.conv_first(x)))
        y = self.lrelu1(self.pixel_shuffle(self.upconv1(y)))
        y = self.lrelu2(self.pixel_shuffle(self.upconv2(y)))
        y = self.conv_last(self.lrelu3(self.conv_hr(y)))
        return y + F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


@network(
    Recipe(
        name="msrresnet_x4",
        summary="super-resolution by 4 with pixel shuffle, 16 residual blocks, 42 GMAC at 128x128",
        task="superres",
        input_size=(3, 128, 128),
        checkpoint="XPixelGroup/BasicSR 001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb; its key names",
    )
)
def msrresnet_x4() -> MSRResNet:
    """64 channels."""
    return MSRResNet(16)
