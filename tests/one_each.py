"""Networks of one operator each, for frames (N, 3, 13, 19)."""

import torch
import torch.nn.functional as F
from oracle import Call
from torch import nn


def attention_of_windows(self, x):
    """Windows of 2x2 pixels of a map that is padded and shifted, as in Swin; x: N 3 13 19."""
    x = self.stem(x)
    y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1)).roll((-1, 1), (1, 2))
    y = y.view(-1, 7, 2, 10, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3)
    q, k, v = self.qkv(y).view(-1, 4, 3, 3).permute(2, 0, 1, 3).unbind(0)
    y = self.proj((q @ k.mT).softmax(-1) @ v)
    y = y.view(-1, 7, 10, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 14, 20, 3)
    return x + y.roll((1, -1), (1, 2))[:, :13, :19].permute(0, 3, 1, 2)


ONE_EACH = {
    "conv": nn.Conv2d(3, 5, 3, padding=1),
    "conv stride": nn.Conv2d(3, 5, (3, 2), (2, 3), (2, 0)),
    "conv dilation": nn.Conv2d(3, 5, 3, padding=4, dilation=2),
    "conv of padding": nn.Conv2d(3, 4, 1, padding=2),
    "many channels": nn.Sequential(nn.Conv2d(3, 130, 1), nn.Conv2d(130, 6, 3, 2, 1), nn.ReLU()),
    "grouped": nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 8, 3, groups=4)),
    "transposed": nn.ConvTranspose2d(3, 4, 4, 2, 1),
    "transposed, odd": nn.ConvTranspose2d(3, 4, 3, 2, 0),
    "transposed, holes": nn.ConvTranspose2d(3, 4, 2, 3, 0, output_padding=1),
    "max pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max pool dilated": nn.MaxPool2d(2, 1, 1, dilation=2),
    "average pool": nn.AvgPool2d(3, 2, 1),
    "average pool, uneven": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "batch norm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)),
    "group norm": nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6)),
    "instance norm": nn.InstanceNorm2d(3),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bicubic": nn.Upsample(size=(19, 9), mode="bicubic", align_corners=True),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest, odd": nn.Upsample(size=(17, 30)),
    "adaptive": nn.AdaptiveAvgPool2d((3, 4)),
    "adaptive max": nn.AdaptiveMaxPool2d((3, 4)),
    "shuffle": nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.Conv2d(3, 2, 3)),
    "unshuffle": Call(lambda self, x: F.pixel_unshuffle(x[:, :, :12, :18], 3)),
    "pad": Call(lambda self, x: F.pad(x, (1, 2, 0, 3), value=0.5) * 2),
    "reflect": Call(lambda self, x: F.pad(x, (1, 2, 2, 1), "reflect")),
    "crop": Call(lambda self, x: x[:, 1:, 2:-1, ::2]),
    "roll and flip": Call(lambda self, x: x.roll((1, -2), (2, 3)).flip(3).flip(1)),
    "gate": Call(lambda self, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)) + x.amax(1, keepdim=True)),
    "sides": Call(lambda self, x: x * x.mean(3, keepdim=True).sigmoid() + x.amax(2, keepdim=True)),
    "beside": Call(lambda self, x: x + F.adaptive_avg_pool2d(x, (None, 1))),
    "tokens": Call(
        lambda self, x: self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        linear=nn.Linear(3, 5),
        norm=nn.LayerNorm(3),
    ),
    "windows": Call(attention_of_windows, stem=nn.Conv2d(3, 3, 1), qkv=nn.Linear(3, 9), proj=nn.Linear(3, 3)),
    "channels": Call(
        lambda self, x: F.channel_shuffle(torch.cat([x, x[:, [2, 0, 1]]], 1), 2)[:, 1:].softmax(1)
    ),
    "maxima of maps": Call(lambda self, x: x * torch.sigmoid(x.amax((2, 3), keepdim=True))),
    "norms of channels": Call(lambda self, x: x * x.norm(dim=(2, 3), keepdim=True)),
    "joined side by side": Call(lambda self, x: torch.cat([x, x.relu()], 3) * 2),
    "local responses": Call(lambda self, x: F.local_response_norm(F.relu(x), 3, 0.5)),
    "labels": Call(lambda self, x: x.argmax(1, keepdim=True)),
    "classifier": nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)
    ),
    "flatten": nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(36, 7)),
    "functions": Call(
        lambda self, x: (
            torch.where(x > 0, F.gelu(x), F.hardswish(x)) + F.mish(x).clamp(-0.2, 0.3) * x.abs().sqrt()
        )
    ),
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(ONE_EACH[name], nn.Identity()).eval()
    for part in network.modules():
        for weight in part.parameters(recurse=False):
            nn.init.normal_(weight, std=0.5)
    return network


def small() -> nn.Sequential:
    """A convolution of each common kind, the middle one with a stride: quick to export."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.Conv2d(8, 4, 1),
    ]
    return nn.Sequential(*layers, nn.ReLU()).eval()
