"""Strategies for hypothesis: settings of operators, and small networks with videos for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from oracle import generator, scripted_video
from torch import nn

KINDS = (
    "conv conv conv conv depthwise transposed norm max avg relu relu_ hardswish sigmoid add iadd sub mul cat gate "
    "resize chunk constant adaptive shuffle unshuffle channels tokens pad crop turn softmax reduce "
    "group instance across side spread responses points power put batches"
).split()
STEP = st.tuples(
    st.sampled_from(KINDS),
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


def pairs(low, high):
    """Pairs of numbers for rows and columns, such as the sides of a window."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


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


class Settings:
    """The settings of a module, all drawn from one number."""

    def __init__(self, number):
        self.number = number
        self.kernel = 1 + number % 4, 1 + number // 4 % 4
        self.stride = 1 + number // 16 % 3, 1 + number // 48 % 3
        self.padding, self.dilation, self.bias = number // 7 % 3, 1 + number // 21 % 2, number % 3 > 0


class Illegal(RuntimeError):
    """This map has no size that the module accepts."""


def _conv(x, s):
    channels = x.shape[1]
    groups = channels if s.number % 5 == 0 else 1
    outer = groups * (1 + s.number % 2) if groups > 1 else 1 + s.number % 6
    stride = s.stride if s.number % 2 else 1
    return nn.Conv2d(channels, outer, s.kernel, stride, s.padding, s.dilation, groups, s.bias)


def _depthwise(x, s):
    return nn.Conv2d(x.shape[1], x.shape[1], 3, s.stride, 1, groups=x.shape[1], bias=s.bias)


def _transposed(x, s):
    padding = s.number // 5 % 2
    return nn.ConvTranspose2d(x.shape[1], 1 + s.number % 4, s.kernel, s.stride, padding, 0, bias=s.bias)


def _norm(x, s):
    part = nn.BatchNorm2d(x.shape[1])
    part.running_mean.uniform_(-1, 1)
    part.running_var.uniform_(0.5, 2)
    return part


def _max(x, s):
    return nn.MaxPool2d(2 + s.number % 2, s.stride, s.number // 2 % 2, ceil_mode=s.bias)


def _avg(x, s):
    size, padding, counted = 2 + s.number % 2, s.number // 2 % 2, s.number % 5 > 1
    return nn.AvgPool2d(size, s.stride, padding, ceil_mode=s.bias, count_include_pad=counted)


def _adaptive(x, s):
    return (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)[s.number // 16 % 2](s.kernel)


def _tokens(x, s):
    return Tokens(x.shape[1], 1 + s.number % 6, flat=s.number % 2 == 1)


def _gate(x, s):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(x.shape[1], x.shape[1], 1), nn.Sigmoid())


def _group(x, s):
    groups = x.shape[1] if s.number % 2 else 1
    if x[0].numel() == groups:
        raise Illegal("no deviation")
    return nn.GroupNorm(groups, x.shape[1], eps=0.1)


def _instance(x, s):
    if x[0, 0].numel() == 1:
        raise Illegal("no deviation")
    return nn.InstanceNorm2d(x.shape[1], eps=0.1, affine=s.number % 2 > 0)


def _points(x, s):
    return nn.Conv1d(x.shape[1], 1 + s.number % 6, 1, bias=s.bias)


def _power(x, s):
    return nn.LPPool2d(1 + s.number % 2, 2 + s.number // 2 % 2, s.stride, ceil_mode=s.bias)


def _batches(x, s):
    return nn.Conv2d(x.shape[1], 1 + s.number % 4, s.kernel, padding=s.padding, bias=s.bias)


MODULES = {
    "conv": _conv,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "norm": _norm,
    "max": _max,
    "avg": _avg,
    "adaptive": _adaptive,
    "relu": lambda x, s: nn.ReLU(),
    "hardswish": lambda x, s: nn.Hardswish(),
    "sigmoid": lambda x, s: nn.Sigmoid(),
    "tokens": _tokens,
    "gate": _gate,
    "group": _group,
    "instance": _instance,
    "points": _points,
    "power": _power,
    "batches": _batches,
}


def _iadd(x, y):
    z = x * 1
    z += y
    return z


OF_TWO = {
    "add": torch.add,
    "iadd": _iadd,
    "sub": torch.sub,
    "mul": torch.mul,
    "cat": lambda x, y: torch.cat([x, y], 1),
}


def _across(x, number):
    """A column or a row beside the map."""
    return x * F.adaptive_avg_pool2d(x, (None, 1) if number % 2 else (1, None))


def _side(x, number):
    """Sums over rows, columns or both as a gate: coordinate attention."""
    dim = (2, 3, (2, 3))[number % 3]
    gate = (torch.amax, torch.mean, torch.sum)[number // 3 % 3](x, dim=dim, keepdim=True)
    return x * gate.sigmoid()


def _spread(x, number):
    """Global response normalisation."""
    return x / (1 + x.norm(dim=(2, 3), keepdim=True))


def _put(x, number):
    y = x * 1
    y[:, number % 2 :, number // 2 % 5 : 9 - number // 10 % 5] = number % 7 - 3.0
    return y


def _chunk(x, number):
    if x.shape[1] < 2:
        raise Illegal("one channel")
    return x.chunk(2, 1)[number % 2]


def _unshuffle(x, number):
    return F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 1 + number % 2)


def _channels(x, number):
    return F.channel_shuffle(torch.cat([x, x], 1), 2)[:, :: 1 + number % 2].flip(1)


def _resize(x, number):
    mode = ("nearest", "bilinear", "bicubic", "area")[number % 4]
    align = number % 3 == 0 if mode in ("bilinear", "bicubic") else None
    size = 1 + number // 4 % 11, 1 + number // 44 % 11
    return F.interpolate(x, size=size, mode=mode, align_corners=align)


def _pad(x, number):
    mode = ("constant", "reflect", "replicate", "circular")[number // 144 % 4]
    least = -1 if mode != "circular" else 0
    pads = [number % 3, least + number // 3 % 3, number // 9 % 3, least + number // 27 % 3]
    return F.pad(x, pads, mode, number % 5 - 1.0 if mode == "constant" else None)


def _crop(x, number):
    rows, cols = (slice(n % 3, None if n % 2 else -(n % 3), 1 + n // 3 % 3) for n in divmod(number, 12))
    return x[:, number % 2 :, rows, cols]


def _turn(x, number):
    dim = 2 + number % 2
    return x.flip(dim) if number % 3 == 0 else x.roll(number % 5 - 2, dim)


def _reduce(x, number):
    return (torch.amax, torch.mean, torch.sum)[number % 3](x, dim=1, keepdim=True)


FUNCTIONS = {
    "relu_": lambda x, number: F.relu_(x * 1),
    "constant": lambda x, number: 1.5 - x * 0.5,
    "softmax": lambda x, number: x.softmax(1),
    "shuffle": lambda x, number: F.pixel_shuffle(torch.cat([x] * 4, 1), 2),
    "unshuffle": _unshuffle,
    "chunk": _chunk,
    "channels": _channels,
    "across": _across,
    "reduce": _reduce,
    "resize": _resize,
    "pad": _pad,
    "crop": _crop,
    "turn": _turn,
    "side": _side,
    "spread": _spread,
    "responses": lambda x, number: F.local_response_norm(x, 1 + number % 3, 0.5),
    "put": _put,
}


def _plainly(part, x):
    return part(x)


def _on_both(part, x):
    """Once for a map and its mirror image, joined along the batch."""
    y, z = part(torch.cat([x, x.flip(3)], 0)).chunk(2, 0)
    return y - z


CALLS = {
    "gate": lambda part, x: x * part(x),
    "points": lambda part, x: part(x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3])),
    "batches": _on_both,
}


class Drawn(nn.Module):
    """The network of a recipe. Steps that are illegal for the sizes at hand are left out."""

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
                with torch.no_grad():
                    new = self.run(entry, [x.clone() for x in maps])
            except RuntimeError:  # such as a window larger than the map
                self.parts[place] = nn.Identity()
                continue
            if new.numel() and max(new.shape[2:]) <= 30 and new.shape[1] <= 16:
                self.program.append(entry)
                maps.append(new)
        self.last = range(max(0, len(maps) - recipe["outputs"]), len(maps))
        self.eval()

    def draw(self, place, kind, which, other, number, maps):
        """(kind, sources, place of the module, number) of a step, its module made."""
        x, sources = maps[which % len(maps)], [which % len(maps)]
        if kind in OF_TWO:
            same = [
                i
                for i, y in enumerate(maps)
                if y.shape[2:] == x.shape[2:] and (kind == "cat" or y.shape == x.shape)
            ]
            sources.append(same[other % len(same)])
        if kind in MODULES:
            self.parts[place] = MODULES[kind](x, Settings(number)).eval()
        return kind, tuple(sources), place, number

    def run(self, entry, maps):
        kind, sources, place, number = entry
        x = maps[sources[0]]
        if kind in MODULES:
            return CALLS.get(kind, _plainly)(self.parts[place], x)
        if kind in OF_TWO:
            return OF_TWO[kind](x, maps[sources[1]])
        return FUNCTIONS[kind](x, number)

    def forward(self, x):
        maps = [x]
        for entry in self.program:
            maps.append(self.run(entry, maps))
        return {f"map {i}": maps[i] for i in self.last}


# On CUDA its joined map has as many values from pixel to pixel as the maps that lie in it would have by themselves.
JOINED = {
    "steps": [("channels", 0, 0, 0)],
    "size": (1, 1),
    "batch": 1,
    "outputs": 1,
    "seed": 0,
}


def video_of(network, seed, dtype=torch.float64, noise=0.0):
    draw = generator(seed)
    frames = scripted_video(network.shape, dtype, seed)
    return [frame + torch.randn(frame.shape, dtype=dtype, generator=draw) * noise for frame in frames]
