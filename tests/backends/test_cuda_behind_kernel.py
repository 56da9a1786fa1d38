"""A convolution and the 1x1 convolution behind it, in one kernel (kernels/conv_behind.cu), on a GPU."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, edge_of
from torch import nn

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import behind, convs
from deltaconvert.backends.cuda.kernels import on_current_stream
from deltaconvert.backends.cuda.marks import list_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Window

TILE = {"BM": 64, "BN": 64, "STAGES": 4, "SPLIT": 1}
LAYERS = {  # in, between, out, kernel, stride, channels of a map whose sum is added; height and width of the output
    "bottleneck": (64, 64, 256, 3, 1, 0, 37, 41),
    "bottleneck, more tiles than run at once": (64, 64, 256, 3, 1, 0, 203, 299),
    "bottleneck with its shortcut": (64, 64, 256, 3, 1, 64, 37, 41),
    "shortcut, more tiles than run at once": (64, 64, 256, 3, 1, 64, 203, 299),
    "odd channels": (64, 40, 136, 3, 1, 0, 37, 41),
    "few channels out": (128, 24, 24, 1, 1, 0, 37, 41),
    "strided": (64, 32, 72, 3, 2, 0, 19, 23),
    "long, with a second map": (256, 64, 128, 1, 1, 64, 37, 41),
}
RELU = Pointwise("relu", {})


def conv_of(outputs: int, inputs: int, kernel: int, stride: int, dtype: torch.dtype) -> Conv2d:
    weight = torch.randn(outputs, inputs, kernel, kernel, device=DEVICE) / (inputs * kernel**2) ** 0.5
    bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
    return Conv2d(weight.to(dtype), bias, (stride, stride), (kernel // 2,) * 2, (1, 1), 1)


def in_64(operator, window, source, edge, also=None):
    """kernels/conv_wgmma.cu in one part."""
    return convs.candidates(operator, window, source, edge, also)["64x64x4/1"]()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_bits_of_two_launches(gpu, layer, dtype, monkeypatch):
    """The kernel gives the bits of two launches for any list of pixels, and writes nothing else."""
    inputs, between, outputs, kernel, stride, others, height, width = LAYERS[layer]
    monkeypatch.setattr(convs, "_wgmma_tiles", lambda steps, channels: {"64x64x4/1": TILE})
    torch.manual_seed(0)
    first, second = conv_of(between, inputs, kernel, stride, dtype), conv_of(outputs, between, 1, 1, dtype)
    shortcut = conv_of(outputs, others, 1, 1, dtype) if others else None
    assert behind.are_computed(first, second, shortcut, dtype, DEVICE)
    source = edge_of(torch.randn(2, inputs, height * stride, width * stride, device=DEVICE).to(dtype))
    inner = edge_of(torch.empty(2, between, height, width, device=DEVICE, dtype=dtype))
    beside = edge_of(torch.randn(2, others or outputs, height, width, device=DEVICE).to(dtype))
    out = edge_of(torch.empty(2, outputs, height, width, device=DEVICE, dtype=dtype))
    (reach,) = first.reaches([tuple(source.values.shape)], tuple(inner.values.shape))
    window = reach if isinstance(reach, Window) else None
    backend = cuda.Backend()

    def tail(of: cuda.Edge, added: bool = False) -> Tail:
        made = Tail(of.values.shape[1], dtype, DEVICE)
        if added:
            made.then(Arithmetic("add", None, False), ["v", made.operand(beside, (height, width))])
        made.then(RELU, ["v"])
        return made

    sum_of = second if shortcut is None else ConvSum(second, shortcut)
    stages = [(RELU, 0, 0), (sum_of, 0 if shortcut is None else 1, 0)]
    also = None if shortcut is None else (shortcut, beside)
    alone = in_64(first, window, source, inner), in_64(second, None, inner, out, also)
    joined = behind.both(stages, first, reach, [source, beside], out)
    launches = [
        (cuda.Launch(backend, alone[0], tail(inner), inner), inner),
        (cuda.Launch(backend, alone[1], tail(out, not others), out), out),
        (cuda.Launch(backend, joined, tail(out, not others), out), out),
    ]
    for share in (1, 0.5, 0.02, 0.001, 0, 1):
        mask = torch.rand(2, 1, height, width, device=DEVICE) < share
        listed, made = list_of(mask), []
        for launch, edge in launches:
            edge.values.fill_(float("nan"))
            with on_current_stream(DEVICE):
                launch(edge.values, listed)
            made.append(edge.values.clone())
        _, apart, together = made
        chosen = mask.expand_as(together)
        assert torch.equal(together[chosen], apart[chosen]), f"{share}: other bits"
        assert not together[chosen].isnan().any()
        assert together[~chosen].isnan().all(), f"{share}: what was not listed is written"


class Bottlenecks(nn.Module):
    """The first with a shortcut that is a convolution."""

    def __init__(self, stride: int = 1):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(64, 64, 1), nn.Conv2d(256, 64, 1)])
        self.windows = nn.ModuleList(
            [nn.Conv2d(64, 64, 3, stride, padding=1), nn.Conv2d(64, 64, 3, padding=1)]
        )
        self.up = nn.ModuleList([nn.Conv2d(64, 256, 1), nn.Conv2d(64, 256, 1)])
        self.shortcut = nn.Conv2d(64, 256, 1, stride)

    def forward(self, x):
        skip = self.shortcut(x)
        for down, window, up in zip(self.down, self.windows, self.up, strict=True):
            x = skip = (up(window(down(x).relu()).relu()) + skip).relu()
        return x


@pytest.mark.gpu
@pytest.mark.parametrize("stride, joined", [(1, 2), (2, 1)])
@pytest.mark.parametrize("rule", [0.0, 0.3])
@torch.no_grad()
def test_network_without_the_map_between(gpu, stride, joined, rule, monkeypatch):
    """In every frame the bits are those of a network that stores every map, if all sums are made in one part."""
    monkeypatch.setattr(convs, "_wgmma_tiles", lambda steps, channels: {"64x64x4/1": TILE})
    monkeypatch.setattr(convs, "_whole_tiles", lambda *layer: {})
    torch.manual_seed(0)
    network = Bottlenecks(stride).to(DEVICE, torch.float16).eval()
    frame = torch.randn(2, 64, 61, 83, device=DEVICE).half()
    options = {"threshold": {"input": rule}, "backend": "cuda"}
    ours = deltaconvert.convert(network, frame, **options)
    assert sum(step.launch._kept[0].source == "conv_behind.cu" for step in ours._program.operators) == joined
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "PASSES", tuple(p for p in cuda.PASSES if p is not behind.join_behind))
        apart = deltaconvert.convert(network, frame, **options)
    assert ours.state_bytes < apart.state_bytes
    for share in (1, 0.3, 0.001, 0, 0.05, 1, 0.01):
        fresh = frame + torch.randn_like(frame)
        frame = torch.where(torch.rand(2, 1, 61, 83, device=DEVICE) < share, fresh, frame)
        assert torch.equal(ours(frame), apart(frame)), share
