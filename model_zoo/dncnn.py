"""DnCNN (Zhang et al. 2017, arXiv 1608.03981) under SaoYan/DnCNN-PyTorch's names."""

from torch import Tensor, nn

from model_zoo.layers import conv, conv_act, conv_norm
from model_zoo.registry import Recipe, network

WIDTH = 64


class DnCNN(nn.Module):
    """(N, channels, H, W) noisy, in 0..1 -> the same size denoised: the layers compute the noise."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        middle = [layer for _ in range(depth - 2) for layer in conv_norm(WIDTH, WIDTH, 3)]
        first = conv_act(channels, WIDTH, 3, bias=False)
        self.dncnn = nn.Sequential(*first, *middle, conv(WIDTH, channels, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.dncnn(x)


@network(
    Recipe(
        name="dncnn",
        summary="grey denoiser, 17 3x3 convolutions at full size, 28 GMAC at 224x224",
        task="denoise",
        input_size=(1, 224, 224),
        mean=(0.0,),
        std=(1.0,),
        channels="grey",
        checkpoint="SaoYan/DnCNN-PyTorch logs/DnCNN-S-15, -S-25 and -S-50 net.pth; its key names"
        " (whose network returns the noise, not the image)",
    )
)
def dncnn(channels: int = 1) -> DnCNN:
    """17 layers of 64 channels."""
    return DnCNN(17, channels)
