"""What the cpu backend does beside the reference: fused epilogues, joined convolutions, bands of large maps."""

import copy

import pytest
import torch
from oracle import Call, assert_close, assert_same_bits, check_operator, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu import bands
from deltaconvert.backends.cpu.packed import Epilogue, PackedConv
from deltaconvert.ops.conv import Conv2d

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="this torch has no packed convolutions"
)


def residual():
    return {"conv": nn.Conv2d(4, 4, 3, padding=1), "point": nn.Conv2d(4, 4, 1), "act": nn.ReLU()}


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.3), nn.Sigmoid(), nn.Tanh(), nn.SiLU()),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.Mish()),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("kernel", (1, 3))
def test_activation_in_the_epilogue(act, kernel):
    module = nn.Sequential(nn.Conv2d(3, 20, kernel, padding=kernel // 2), act, nn.Conv2d(20, 5, kernel))
    check_operator(module, (2, 3, 13, 11), dtype=torch.float32, backend="cpu")


SKIPS = {
    "add": lambda m, x: m.point(m.conv(x)) + x,
    "add from the left": lambda m, x: x + m.point(x),
    "add, relu": lambda m, x: m.act(m.conv(x) + x),
    "add, sigmoid": lambda m, x: (m.conv(x) + x).sigmoid(),
    "add twice": lambda m, x: m.act(m.point(x) + x + m.conv(x)),
    "add a gate": lambda m, x: m.act(m.conv(x) + x.mean((2, 3), keepdim=True)),
    "add one channel": lambda m, x: m.conv(x) + x[:, :1],
    "add to one channel": lambda m, x: m.conv(x)[:, :1] + x,
    "add, then joined": lambda m, x: m.point(m.act(m.conv(x) + x)) * x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skip_in_the_epilogue(name):
    check_operator(Call(SKIPS[name], **residual()), (2, 4, 9, 14), dtype=torch.float32, backend="cpu")


def test_joined_convolution_stores_nothing_between():
    depthwise = nn.Sequential(nn.Conv2d(4, 24, 1), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=24))
    module = nn.Sequential(depthwise, nn.ReLU6(), nn.Conv2d(24, 6, 1))
    frame = torch.randn(1, 4, 12, 10)
    delta = deltaconvert.convert(module.eval(), frame, backend="cpu")
    shapes = [mask.shape[2:] for mask in delta.masks().values()]
    assert len(shapes) == 3, f"input, expansion, and the rest in one: {list(delta.masks())}"
    assert [row.operator for row in delta.explain().rows if row.kind == "delta"] == [
        "Conv2d + relu6",
        "Conv2d + relu6 + Conv2d",
    ]
    whole = deltaconvert.convert(module, frame, backend="reference").explain()
    assert sum(row.macs for row in delta.explain().rows) == sum(row.macs for row in whole.rows)
    check_operator(module, (2, 4, 12, 10), dtype=torch.float32, backend="cpu")


def test_a_threshold_between_keeps_them_apart():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()).eval()
    frame = torch.randn(1, 3, 12, 10)
    apart = deltaconvert.convert(module, frame, backend="cpu", threshold={"1": 0.1})
    assert apart.thresholds["0"] == 0.1 and len(apart.masks()) == 3
    behind = deltaconvert.convert(module, frame, backend="cpu", threshold={"3": "10%"})
    assert len(behind.masks()) == 2 and behind.thresholds["0"] > 0
    # Another size goes by the amounts of the first: none for the activation inside, the same behind it.
    rules = behind.rules
    assert rules["1"] == 0 and rules["3"] == behind.thresholds["0"]


class Bands(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.dilated = nn.Conv2d(16, 16, 5, 1, 4, dilation=2, groups=16)
        self.point, self.square = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, 1, 1)
        self.last = nn.Conv2d(24, 24, 7, 3, 2)

    def forward(self, x):
        y = self.point(self.dilated(self.first(x).relu()).relu())
        y = (y + self.square(y).relu()) * y.mean((2, 3), keepdim=True)
        return self.last(y).sigmoid()


@pytest.mark.parametrize("shape", [(1, 3, 61, 47), (3, 3, 40, 33), (1, 3, 9, 200)])
def test_bands(monkeypatch, shape):
    monkeypatch.setattr(bands, "LARGE_BYTES", 0)
    monkeypatch.setattr(bands, "BAND_BYTES", 6000)
    used = []
    run = bands.Bands.run
    monkeypatch.setattr(bands.Bands, "run", lambda self, inputs: (used.append(self), run(self, inputs))[1])
    module = Bands().eval()
    frames = scripted_video(shape, torch.float32)
    model = deltaconvert.convert(module, frames[0], backend="cpu")
    fresh, used[:] = copy.deepcopy(model), []
    for t, frame in enumerate(frames):
        outputs = model(frame)
        with torch.no_grad():
            assert_close(outputs, module(frame), f"frame {t}")
        fresh.reset()
        assert_same_bits(outputs, fresh(frame), f"frame {t} against a reset model")
    assert used, "no frame was computed in bands"


def pointwise_conv():
    return Conv2d(torch.randn(256, 256, 1, 1), None, (1, 1), (0, 0), (1, 1), 1)


def test_weights_are_kept_once_for_each_order(monkeypatch):
    conv = PackedConv(pointwise_conv(), (0, 0), Epilogue())
    monkeypatch.setattr(PackedConv, "_seconds", lambda self, x, other, weight: 1.0)
    for pixels in (512, 64, 8):
        conv(torch.randn(1, 256, pixels, 1).contiguous(memory_format=torch.channels_last))
    assert len(conv._packed) == 3 and len({id(weight) for weight in conv._packed.values()}) == 1


def test_another_order_gets_weights_of_its_own(monkeypatch):
    conv = PackedConv(pointwise_conv(), (0, 0), Epilogue())
    # What was packed for this size takes 1, what was packed for others 2.
    seconds = lambda self, x, other, weight: 1.0 + any(weight is known for known in self._packed.values())  # noqa: E731
    monkeypatch.setattr(PackedConv, "_seconds", seconds)
    x = {n: torch.randn(1, 256, n, 1).contiguous(memory_format=torch.channels_last) for n in (512, 64)}
    results = {n: conv(value) for n, value in x.items()}
    assert len({id(weight) for weight in conv._packed.values()}) == 2
    for n, value in x.items():
        assert torch.equal(conv(value), results[n])
