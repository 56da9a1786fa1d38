"""1x1 convolutions behind others in one node, and what their kernel reads (backends/cuda/behind.py). Needs no GPU."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from on_cpu import GXX, edge_of, without_a_gpu
from oracle import assert_same_bits, scripted_video
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cuda import behind
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.backends.cuda.wgmma_kernels import by_both
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_sum import ConvSum
from deltaconvert.ops.fused import stages_of
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Window


class Bottleneck(nn.Module):
    def __init__(self, stride: int = 1, between: nn.Module | None = None):
        super().__init__()
        self.down, self.window = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, stride, padding=1)
        self.between, self.up = between or nn.ReLU(), nn.Conv2d(16, 24, 1)
        self.shortcut = nn.Conv2d(8, 24, 1, stride)

    def forward(self, x):
        return (self.up(self.between(self.window(self.down(x).relu()))) + self.shortcut(x)).relu()


def convert(network: nn.Module, monkeypatch, frame: Tensor, **options) -> deltaconvert.DeltaModel:
    """Converts as for a GPU whose kernel computes both; here torch computes them on whole maps."""
    without_a_gpu(monkeypatch)
    monkeypatch.setattr(behind, "are_computed", lambda *_: True)
    return deltaconvert.convert(network, frame, backend="cuda", **options)


def joined(model: deltaconvert.DeltaModel) -> int:
    convs = (Conv2d, ConvSum)
    stages = [stages_of(step.operator) for step in model._program.operators]
    return sum(sum(isinstance(stage, convs) for stage in parts) == 2 for parts in stages)


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
@pytest.mark.parametrize("threshold", [{"input": 0.0}, {"input": 0.3}, {"activation": 0.1}])
@pytest.mark.parametrize("stride", [1, 2])
def test_equal_to_the_reference(monkeypatch, stride, threshold):
    torch.manual_seed(0)
    network = nn.Sequential(Bottleneck(stride)).eval()
    video = scripted_video((2, 8, 21, 26), torch.float32)[:5]
    ours = convert(network, monkeypatch, video[0], threshold=threshold)
    theirs = deltaconvert.convert(network, video[0], backend="reference", threshold=threshold)
    assert joined(ours) == int("activation" not in threshold), "a threshold stands between the two"
    for t, frame in enumerate(video):
        torch.testing.assert_close(ours(frame), theirs(frame), msg=f"frame {t}")
    if threshold == {"input": 0.0}:
        before = ours(video[-1])
        ours.reset()
        ours(video[0])
        assert_same_bits(ours(video[-1]), before, "whatever came before")


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
def test_read_twice(monkeypatch):
    """A map that another node reads as well is stored."""

    class Twice(Bottleneck):
        def forward(self, x):
            y = self.window(self.down(x).relu()).relu()
            return self.up(y), y

    frame = torch.rand(1, 8, 9, 9)
    assert joined(convert(Twice().eval(), monkeypatch, frame)) == 0
    assert joined(convert(Bottleneck(between=nn.BatchNorm2d(16)).eval(), monkeypatch, frame)) == 1
    assert joined(convert(Bottleneck(between=nn.PReLU(16)).eval(), monkeypatch, frame)) == 0, (
        "a number for each channel"
    )


def straight(rows: Tensor) -> Tensor:
    """(steps, 64, 8, values): matrices as they lie in memory, their swizzled chunks in order."""
    at = torch.arange(8) ^ (torch.arange(64).view(-1, 1) % 8)
    return rows.gather(2, at.view(1, 64, 8, 1).expand(rows.shape)).float()


def computed(head, source: SimpleNamespace, other: SimpleNamespace | None, size: tuple[int, int]) -> Tensor:
    """What kernels/conv_behind.cu makes of the pixels of one image, from a Head's bytes; relu between."""
    pitch, height, width, sh, sw, ph, pw, kh, kw, dh, dw, steps, _, *second = struct.unpack(
        "=18i", head.packed[32:104]
    )
    first, behind_weight, bias, behind_bias, table = head.weights
    own = head.macros["FIRST_STEPS"]
    assert steps == own + head.macros["ALSO_STEPS"]
    taps = table.view(torch.int32).view(-1, 2).tolist()
    assert len(taps) == steps, "one for each"
    pieces = source.memory.view(-1, 8)
    of_other = pieces if other is None else other.memory.view(-1, 8)
    weights = straight(first.view(own, 64, 8, 8))
    groups = straight(behind_weight.view(-1, 64, 8, 8)).view(head.macros["GROUPS"], -1, 64, 8, 8)
    out = []
    for y in range(size[0]):
        for x in range(size[1]):
            top, left = y * sh - ph, x * sw - pw
            base = (top * width + left) * pitch
            also = (y * second[3] * second[2] + x * second[4]) * second[0]
            rows = []
            for offset, tap in taps:
                inside = tap == kh * kw or (
                    0 <= top + tap // kw * dh < height and 0 <= left + tap % kw * dw < width
                )
                at = (also if tap == kh * kw else base) + offset
                read = of_other if tap == kh * kw else pieces
                rows.append(read[at : at + 8].float() if inside else torch.zeros(8, 8))
            between = torch.einsum("sncv,scv->n", weights, torch.stack(rows[:own])) + bias
            kept = between.relu().half().float().view(1, 8, 8)
            both = torch.cat([kept, torch.stack(rows[own:])]) if other else kept
            out.append(torch.einsum("gsncv,scv->gn", groups, both).flatten() + behind_bias)
    return torch.stack(out).T.view(1, -1, *size)


@pytest.mark.parametrize("others", [0, 64])
@pytest.mark.parametrize(
    "inputs, between, outputs, kernel, stride", [(64, 40, 136, 3, 2), (128, 64, 64, 1, 1)]
)
def test_the_kernel_reads_both_convolutions(inputs, between, outputs, kernel, stride, others):
    torch.manual_seed(0)

    def conv(out: int, into: int, side: int, step: int) -> Conv2d:
        weight = torch.randn(out, into, side, side) / (into * side**2) ** 0.5
        return Conv2d(weight.half(), torch.randn(out).half(), (step,) * 2, (side // 2,) * 2, (1, 1), 1)

    first, second = conv(between, inputs, kernel, stride), conv(outputs, between, 1, 1)
    also = (conv(outputs, others, 1, 1), edge_of(torch.randn(1, others, 3, 4).half())) if others else None
    source = edge_of(torch.randn(1, inputs, 3 * stride, 4 * stride).half())
    window = None
    if kernel > 1:
        window = Window((kernel,) * 2, (stride,) * 2, (1, 1), (1, 1), tuple(source.values.shape[2:]), (3, 4))
    relu = Tail(between, torch.float16, torch.device("cpu"))
    relu.then(Pointwise("relu", {}), ["v"])
    head = by_both(first, window, source, source, relu, second, also)
    kept = F.conv2d(source.values.double(), first.weight.double(), first.bias.double(), stride, kernel // 2)
    expected = F.conv2d(kept.relu(), second.weight.double(), second.bias.double())
    if also is not None:
        expected += F.conv2d(also[1].values.double(), also[0].weight.double(), also[0].bias.double())
    found = computed(head, source, None if also is None else also[1], (3, 4))[:, :outputs]
    torch.testing.assert_close(found, expected.float(), rtol=2e-3, atol=5e-3)
    assert "v < 0" in head.macros["BETWEEN"]
