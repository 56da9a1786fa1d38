"""The networks that .ci/sanitize.py plays: together they launch every kernel of kernels/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from oracle import Call
from torch import nn
from torch.nn import functional as F

SKIPPED = "skipped"  # the network whose still frames skip a part of the graph
# Networks of one layer.
IN_EVERY_WAY = ("wide", "a long sum", "octets", "depthwise", "taps on tensor cores", "transposed")
GATES: dict[str, dict[str, Any]] = {
    "gated": {"smooth": 3, "dilate": 2, "weak": 0.5},
    "gated by means": {"smooth": 5, "recent": 4, "noise": 2.0, "refresh": 3},
    "gated bytes": {"smooth": 3, "dilate": 9, "weak": 0.5, "noise": 2.0},
    "gated under a ceiling": {"dilate": 1, "refresh": 9, "max_density": 0.3},
}


class Case(NamedTuple):
    name: str
    network: Any
    shape: tuple[int, ...]
    kind: str
    threshold: float

    @property
    def told(self) -> str:
        return f"{self.name} {self.kind} {self.threshold}"


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    mixed, squeezed, norms, bottleneck, inverted, many = (
        make() for make in (_mixed, _squeezed, _norms, _bottleneck, _inverted, _many)
    )
    for kind in ("half", "tf32", "float"):
        for threshold in (0.0, 0.1):
            yield Case("mixed", mixed, (2, 3, 36, 52), kind, threshold)
    for kind in ("half", "float"):
        yield Case("means of a gate", squeezed, (2, 8, 150, 140), kind, 0.0)
        yield Case("means of norms", norms, (2, 12, 150, 140), kind, 0.0)
    for kind in ("half", "tf32"):
        yield from _of_one_layer(kind)
        for threshold in (0.0, 0.1):
            yield Case("inverted", inverted, (1, 32, 41, 70), kind, threshold)
    around = nn.Sequential(_conv(96, 96, 5, padding=2, groups=96))
    yield Case("taps on tensor cores", around, (2, 96, 68, 120), "half", 0.0)
    for kind in ("half", "tf32", "float"):
        yield Case("bottleneck", bottleneck, (1, 64, 96, 97), kind, 0.0)  # more tiles than run at once
    for threshold in (0.0, 0.1):
        yield Case("lists aside", many, (2, 3, 260, 320), "float", threshold)
    last = nn.Sequential(_conv(8, 12, 3, padding=1), nn.PixelShuffle(2))
    for kind in ("half", "float"):
        yield Case("shuffled at the end", last, (2, 8, 21, 33), kind, 0.0)
    # So many launches that still frames skip them.
    long = nn.Sequential(_conv(3, 8, 3, padding=1), *(nn.MaxPool2d(3, 1, 1) for _ in range(64)))
    yield Case(SKIPPED, long, (1, 3, 40, 50), "float", 0.0)
    yield Case("gated", many, (2, 3, 60, 70), "half", 0.1)
    yield Case("gated by means", many, (2, 3, 60, 70), "half", 0.1)
    yield Case("gated under a ceiling", many, (2, 3, 60, 70), "half", 0.1)
    bytes_of_cameras = Call(lambda m, x: m.many(x.permute(0, 3, 1, 2).half()), many=many)
    yield Case("gated bytes", bytes_of_cameras, (2, 3, 60, 70), "half", 9.0)


def _of_one_layer(kind: str) -> Iterator[Case]:
    transposed = nn.Sequential(nn.ConvTranspose2d(64, 24, 4, stride=2, padding=1))
    yield Case("transposed", transposed, (1, 64, 17, 19), kind, 0.0)
    long = nn.Sequential(_conv(256, 64, 3, padding=1), nn.ReLU())
    yield Case("a long sum", long, (1, 256, 30, 31), kind, 0.0)
    yield Case("wide", nn.Sequential(_conv(64, 200, 3, padding=1)), (2, 64, 40, 50), kind, 0.0)
    side_by_side = nn.Sequential(_conv(64, 64, 3, padding=1), nn.ReLU())
    for threshold in (0.0, 0.1):
        yield Case("octets", side_by_side, (2, 64, 41, 72), kind, threshold)
    # More pixels and channels than threads take at once, for tiles in shared memory.
    depthwise = nn.Sequential(_conv(256, 256, 3, padding=1, groups=256))
    yield Case("depthwise", depthwise, (1, 256, 96, 97), kind, 0.0)


def _conv(*args: int, **options: Any) -> nn.Module:
    return nn.Conv2d(*args, **options)


def _mixed() -> nn.Module:
    return Call(
        lambda m, x: m.head(torch.cat([m.up(m.block(m.stem(x))), m.shuffle(m.stem(x))], 1)),
        stem=nn.Sequential(_conv(3, 24, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        block=nn.Sequential(
            _conv(24, 24, 3, padding=1, groups=24), nn.SiLU(), _conv(24, 40, 1), nn.AvgPool2d(3, 1, 1)
        ),
        up=nn.ConvTranspose2d(40, 16, 2, stride=2),
        shuffle=nn.PixelShuffle(2),
        head=_conv(22, 8, 3, padding=1),
    )


def _squeezed() -> nn.Module:
    return Call(
        lambda m, x: m.a(x) * m.b(x.mean((2, 3), keepdim=True)).sigmoid(),
        a=_conv(8, 16, 1),
        b=_conv(8, 16, 1),
    )


def _norms() -> nn.Module:
    return Call(
        lambda m, x: (
            torch.cat([m.group(x).softmax(1), m.shuffle(x), F.adaptive_max_pool2d(x, (150, 140))], 1)
            * F.adaptive_max_pool2d(m.a(x), 1).sigmoid()
        ),
        a=_conv(12, 36, 1),
        group=nn.GroupNorm(3, 12),
        shuffle=nn.ChannelShuffle(2),
    )


def _bottleneck() -> nn.Module:
    """Two of them: the second reads what the first has added up."""

    def block(channels: int) -> nn.Module:
        return nn.Sequential(
            _conv(channels, 64, 1), nn.ReLU(), _conv(64, 64, 3, padding=1), nn.ReLU(), _conv(64, 256, 1)
        )

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = (m.block(x) + m.shortcut(x)).relu()
        return (m.again(y) + y).relu()

    return Call(forward, block=block(64), shortcut=_conv(64, 256, 1), again=block(256))


def _inverted() -> nn.Module:
    return Call(
        lambda m, x: m.narrow(m.block(x)) + x,
        block=nn.Sequential(
            _conv(32, 96, 1), nn.ReLU6(), _conv(96, 96, 3, padding=1, groups=96), nn.ReLU6(), _conv(96, 32, 1)
        ),
        narrow=nn.Sequential(
            _conv(32, 144, 1), nn.ReLU6(), _conv(144, 144, 5, padding=2, groups=144), _conv(144, 32, 1)
        ),
    )


def _many() -> nn.Module:
    return nn.Sequential(
        _conv(3, 8, 3, stride=2, padding=1), nn.ReLU(), _conv(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Upsample(scale_factor=1.5, mode="bilinear"), _conv(8, 8, 3, padding=1),
    )  # fmt: skip
