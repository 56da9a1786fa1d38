"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), size-keeping, under milesial/Pytorch-UNet's names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_zoo.layers import conv_norm
from model_zoo.registry import Recipe, network


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or outputs
        self.double_conv = nn.Sequential(*conv_norm(inputs, middle, 3), *conv_norm(middle, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H // 2, W // 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Doubles the deep map and joins the skip: (N, C, H // 2, W // 2), (N, S, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(inputs, outputs, inputs // 2)
        else:
            self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
            self.conv = DoubleConv(inputs, outputs)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        deep = self.up(deep)
        # Pooling rounds an odd size down, so the doubled map can lack the last row or column. Padding by zero
        # otherwise, instead of an `if`, keeps the network traceable.
        rows, columns = skip.shape[2] - deep.shape[2], skip.shape[3] - deep.shape[3]
        return self.conv(torch.cat((skip, F.pad(deep, (0, columns, 0, rows))), 1))


class OutConv(nn.Module):
    """The 1x1 classifier of each pixel: (N, inputs, H, W) -> (N, classes, H, W)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """(N, channels, H, W), H and W from 16 on and odd or even -> (N, classes, H, W) logits."""

    def __init__(self, channels: int, classes: int, bilinear: bool) -> None:
        super().__init__()
        # Bilinear upsampling keeps the channels, so the deeper side of each level is built with half as many.
        half = 2 if bilinear else 1
        self.inc = DoubleConv(channels, 64)
        self.down1 = Down(64, 128)
        self.down2 = Down(128, 256)
        self.down3 = Down(256, 512)
        self.down4 = Down(512, 1024 // half)
        self.up1 = Up(1024, 512 // half, bilinear)
        self.up2 = Up(512, 256 // half, bilinear)
        self.up3 = Up(256, 128 // half, bilinear)
        self.up4 = Up(128, 64, bilinear)
        self.outc = OutConv(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.inc(x)
        skip2 = self.down1(skip1)
        skip3 = self.down2(skip2)
        skip4 = self.down3(skip3)
        x = self.up1(self.down4(skip4), skip4)
        x = self.up2(x, skip3)
        x = self.up3(x, skip2)
        return self.outc(self.up4(x, skip1))


@network(
    Recipe(
        name="unet",
        summary="segmentation with transposed convolutions, 31 M parameters, trained on Carvana at half size",
        task="segment",
        input_size=(3, 640, 959),
        checkpoint="milesial/Pytorch-UNet release v3.0, unet_carvana_scale0.5_epoch2.pth; its key names,"
        " convolutions without bias (files written by its train.py also hold 'mask_values': remove that key)",
    )
)
def unet(channels: int = 3, classes: int = 2, bilinear: bool = False) -> UNet:
    """Four levels, 64 to 1024 channels."""
    return UNet(channels, classes, bilinear)


@network(
    Recipe(
        name="unet_bilinear",
        summary="segmentation with bilinear upsampling, 17 M parameters",
        task="segment",
        input_size=(3, 640, 959),
        checkpoint="milesial/Pytorch-UNet trained with --bilinear; its key names",
    )
)
def unet_bilinear(channels: int = 3, classes: int = 2) -> UNet:
    """Four levels, 64 to 512 channels."""
    return UNet(channels, classes, bilinear=True)
