"""Small networks that hypothesis draws, and videos for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from oracle import (
    generator,
    scripted_video,
)
from torch import nn

STEP = st.tuples(
    st.sampled_from(
        "conv conv conv conv depthwise transposed norm max avg relu relu_ hardswish sigmoid add iadd sub mul cat gate "
        "resize chunk constant adaptive shuffle unshuffle channels tokens pad crop turn softmax reduce "
        "group instance across".split()
    ),
    st.integers(0, 99),  # which of the maps so far
    st.integers(0, 99),  # which other map, where it takes two
    st.integers(0, 9999),  # its settings
)
RECIPE = st.fixed_dictionaries(
    {
        "steps": st.lists(STEP, min_size=2, max_size=9),
        "size": st.tuples(st.integers(1, 14), st.integers(1, 14)),
        "batch": st.integers(1, 3),
        "outputs": st.integers(1, 3),
        "seed": st.integers(0, 999),
    }
)


class Tokens(nn.Module):
    """What transformers and ConvNeXt do to maps: norm and linear on N H W C or N (H W) C, and back."""

    def __init__(self, channels, outer, flat):
        super().__init__()
        # This eps keeps pixels of nearly equal channels from magnifying rounding errors.
        self.norm, self.linear = nn.LayerNorm(channels, eps=0.1), nn.Linear(channels, outer)
        self.scale, self.flat = nn.Parameter(torch.rand(outer)), flat

    def forward(self, x):
        if not self.flat:
            y = self.norm(x.permute(0, 2, 3, 1))
            return (F.gelu(self.linear(y)) * self.scale).permute(0, 3, 1, 2)
        y = self.norm(x.flatten(2).transpose(1, 2))
        y = self.linear(y + F.silu(y)).transpose(1, 2)
        return y.reshape(x.shape[0], -1, x.shape[2], x.shape[3])


class Drawn(nn.Module):
    """The network of a recipe. A step that is illegal for the sizes at hand is left out."""

    def __init__(self, recipe):
        super().__init__()
        torch.manual_seed(recipe["seed"])
        self.parts, self.program = nn.ModuleList(), []
        self.shape = (recipe["batch"], 3, *recipe["size"])
        maps = [torch.randn(self.shape)]
        for step in recipe["steps"]:
            place = len(self.parts)
            self.parts.append(nn.Identity())
            try:
                entry = self.draw(place, *step, maps)
                if entry is None:
                    continue
                with torch.no_grad():
                    new = self.run(entry, [x.clone() for x in maps])
            except RuntimeError:  # a window larger than the map
                self.parts[place] = nn.Identity()
                continue
            if new.numel() and max(new.shape[2:]) <= 30 and new.shape[1] <= 16:
                self.program.append(entry)
                maps.append(new)
        self.last = range(max(0, len(maps) - recipe["outputs"]), len(maps))
        self.eval()

    def draw(self, place, kind, which, other, number, maps):
        """(kind, sources, place of the module, number) of a step, its module made."""
        source = which % len(maps)
        x = maps[source]
        channels = x.shape[1]
        sources = [source]
        kernel, stride = (1 + number % 4, 1 + number // 4 % 4), (1 + number // 16 % 3, 1 + number // 48 % 3)
        padding, dilation, bias = number // 7 % 3, 1 + number // 21 % 2, number % 3 > 0
        part = None
        if kind == "conv":
            groups = channels if number % 5 == 0 else 1
            outer = groups * (1 + number % 2) if groups > 1 else 1 + number % 6
            part = nn.Conv2d(
                channels, outer, kernel, stride if number % 2 else 1, padding, dilation, groups, bias
            )
        elif kind == "depthwise":
            part = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=bias)
        elif kind == "transposed":
            part = nn.ConvTranspose2d(channels, 1 + number % 4, kernel, stride, number // 5 % 2, 0, bias=bias)
        elif kind == "norm":
            part = nn.BatchNorm2d(channels)
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
        elif kind == "max":
            part = nn.MaxPool2d(2 + number % 2, stride, number // 2 % 2, ceil_mode=bias)
        elif kind == "avg":
            part = nn.AvgPool2d(
                2 + number % 2, stride, number // 2 % 2, ceil_mode=bias, count_include_pad=number % 5 > 1
            )
        elif kind == "adaptive":
            pool = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)[number // 16 % 2]
            part = pool((1 + number % 4, 1 + number // 4 % 4))
        elif kind in ("relu", "relu_", "hardswish", "sigmoid"):
            part = {
                "relu": nn.ReLU(),
                "relu_": nn.ReLU(),
                "hardswish": nn.Hardswish(),
                "sigmoid": nn.Sigmoid(),
            }[kind]
        elif kind in ("add", "iadd", "sub", "mul", "cat"):
            same = [
                i
                for i, y in enumerate(maps)
                if y.shape[2:] == x.shape[2:] and (kind == "cat" or y.shape == x.shape)
            ]
            sources.append(same[other % len(same)])
        elif kind == "tokens":
            part = Tokens(channels, 1 + number % 6, flat=number % 2 == 1)
        elif kind == "gate":
            part = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        elif kind == "group":
            groups = channels if number % 2 else 1
            if x[0].numel() == groups:  # no deviation
                return None
            part = nn.GroupNorm(groups, channels, eps=0.1)
        elif kind == "instance":
            if x.shape[2] * x.shape[3] == 1:
                return None
            part = nn.InstanceNorm2d(channels, eps=0.1, affine=number % 2 > 0)
        elif kind == "chunk" and channels < 2:
            return None
        return kind, tuple(sources), place if part is not None else None, number

    def run(self, entry, maps):
        kind, sources, place, number = entry
        x, y = maps[sources[0]], maps[sources[-1]]
        if kind == "gate":
            return x * self.parts[place](x)
        if kind == "relu_":
            return F.relu_(x * 1)
        if place is not None:
            return self.parts[place](x)
        if kind == "iadd":
            z = x * 1
            z += y
            return z
        if kind == "cat":
            return torch.cat([x, y], 1)
        if kind == "softmax":
            return x.softmax(1)
        if kind == "reduce":
            return (torch.amax, torch.mean, torch.sum)[number % 3](x, dim=1, keepdim=True)
        if kind == "across":  # a column or a row beside the map
            return x * F.adaptive_avg_pool2d(x, (None, 1) if number % 2 else (1, None))
        if kind == "chunk":
            a = x.chunk(2, 1)
            return a[number % 2]
        if kind == "shuffle":
            return F.pixel_shuffle(torch.cat([x] * 4, 1), 2)
        if kind == "unshuffle":
            return F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 1 + number % 2)
        if kind == "channels":
            return F.channel_shuffle(torch.cat([x, x], 1), 2)[:, :: 1 + number % 2].flip(1)
        if kind == "resize":
            mode = ("nearest", "bilinear", "bicubic", "area")[number % 4]
            align = number % 3 == 0 if mode in ("bilinear", "bicubic") else None
            size = 1 + number // 4 % 11, 1 + number // 44 % 11
            return F.interpolate(x, size=size, mode=mode, align_corners=align)
        if kind == "pad":
            mode = ("constant", "reflect", "replicate", "circular")[number // 144 % 4]
            least = -1 if mode != "circular" else 0
            pads = [number % 3, least + number // 3 % 3, number // 9 % 3, least + number // 27 % 3]
            return F.pad(x, pads, mode, number % 5 - 1.0 if mode == "constant" else None)
        if kind == "crop":
            rows, cols = (
                slice(n % 3, None if n % 2 else -(n % 3), 1 + n // 3 % 3) for n in divmod(number, 12)
            )
            return x[:, number % 2 :, rows, cols]
        if kind == "turn":
            dim = 2 + number % 2
            return x.flip(dim) if number % 3 == 0 else x.roll(number % 5 - 2, dim)
        if kind == "constant":
            return 1.5 - x * 0.5
        return {"add": x + y, "sub": x - y, "mul": x * y}[kind]

    def forward(self, x):
        maps = [x]
        for entry in self.program:
            maps.append(self.run(entry, maps))
        return {f"map {i}": maps[i] for i in self.last}


# On CUDA its joined map has as many values from pixel to pixel as the maps that lie in it would have by themselves.
JOINED = {
    "steps": [("conv", 0, 0, 0), ("channels", 0, 0, 0)],
    "size": (1, 1),
    "batch": 1,
    "outputs": 1,
    "seed": 0,
}


def video_of(network, seed, dtype=torch.float64, noise=0.0):
    draw = generator(seed)
    frames = scripted_video(network.shape, dtype, seed)
    return [frame + torch.randn(frame.shape, dtype=dtype, generator=draw) * noise for frame in frames]
