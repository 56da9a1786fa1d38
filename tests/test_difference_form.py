"""Our update form does the paper's arithmetic: masks and outputs equal those of a literal difference form in
float64."""

import pytest
import torch
import torch.nn.functional as F
from difference_form import DifferenceForm
from oracle import Call, assert_close, clones, generator, leaves, scripted_video
from torch import nn

import deltaconvert


def conv_bn_relu(inner, outer, kernel=3, **options):
    options = {"padding": kernel // 2, "bias": False, **options}
    norm = nn.BatchNorm2d(outer)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, **options), norm, nn.ReLU())


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.up(self.down(self.pool(x)).relu()).sigmoid()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv_bn_relu(3, 4), conv_bn_relu(4, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.side = conv_bn_relu(4, 6, stride=2), nn.Conv2d(4, 6, 1, stride=2)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.a(x))
        y += x
        y = F.relu(y)
        return F.relu(self.down(y) + self.side(y))


class Branches(nn.Module):
    """Concat, interpolation, a transposed convolution, pools of both kinds, a split."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = conv_bn_relu(3, 4), conv_bn_relu(4, 4, stride=2)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 3, 2, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        deep = self.deep(x)
        grown = F.interpolate(F.avg_pool2d(deep, 2), size=x.shape[2:], mode="bilinear")
        a, b = self.up(deep).chunk(2, 1)
        joined = torch.cat([x, F.hardswish(a) * b, b - a, grown], 1)
        return self.out(joined), F.max_pool2d(joined, 3, 2, 1)


NETWORKS = {
    "chain": lambda: nn.Sequential(
        conv_bn_relu(3, 4),
        conv_bn_relu(4, 6, stride=2),
        nn.MaxPool2d(3, 2, 1),
        conv_bn_relu(6, 5, dilation=2, padding=2),
    ),
    "average pools": lambda: nn.Sequential(
        conv_bn_relu(3, 4, 5),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        conv_bn_relu(4, 4),
        nn.AdaptiveAvgPool2d(3),
    ),
    "residual": Residual,
    "branches": Branches,
    "gate": lambda: nn.Sequential(conv_bn_relu(3, 4), Gate(4), nn.Conv2d(4, 3, 3)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, 2, 1, groups=6),
        nn.Hardswish(),
        nn.Conv2d(6, 4, 1),
        nn.SiLU(),
    ),
    "transposed": lambda: nn.Sequential(
        conv_bn_relu(3, 4, stride=2),
        nn.ConvTranspose2d(4, 4, 2, 3),
        nn.LeakyReLU(0.1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 2, 3),
    ),
    "padding only": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1, padding=1), nn.PReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid()
    ),
    "constants": lambda: nn.Sequential(
        Call(lambda m, x: (1 - x * m.scale) / 2, scale=torch.randn(1, 3, 1, 1)),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3),
    ),
}
THRESHOLDS = {
    "one": 0.15,
    "input alone": {"input": 0.2},
    "activations alone": {"activation": 0.2, "gate": 0.01},
    "shares": {"input": "15%", "activation": "25%", "gate": "2%"},
}


def noisy_video(shape, seed=0):
    """The scripted video and 20 more frames, all with noise about as large as the thresholds."""
    draw = generator(seed + 1)
    frames = scripted_video(shape, torch.float64, seed)
    frames += scripted_video(shape, torch.float64, seed + 1)[2:]
    frames += [frames[-1]] * 6
    return [frame + torch.randn(shape, dtype=torch.float64, generator=draw) * 0.07 for frame in frames]


def assert_same_as_differences(model, videos):
    """In every frame, masks of all nodes and outputs are the same; and no comparison depended on rounding."""
    oracle, dropped = DifferenceForm(model), 0
    for t, frames in enumerate(zip(*videos, strict=True)):
        got, expected = leaves(model(*clones(frames))), oracle(*frames)
        for node, mask in oracle.masks.items():
            assert torch.equal(model._program.edges[node].mask, mask), f"frame {t}: masks of {node} differ"
            dropped += int((~mask).sum())
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b, f"frame {t}")
    assert oracle.margin() > 1e-9, (
        f"a comparison is within {oracle.margin():.3g} of its threshold: draw other values"
    )
    return dropped


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_masks_and_outputs(backend, name, threshold):
    torch.manual_seed(1)
    network = NETWORKS[name]().eval().double()
    video = noisy_video((2, 3, 13, 11))
    assert len(video) >= 30
    model = deltaconvert.convert(network, video[0], threshold=THRESHOLDS[threshold], backend=backend)
    assert {row.kind for row in model.explain().rows} <= {"delta", "sparsify", "densify"}
    assert assert_same_as_differences(model, [video]) > 0


def test_residuals_are_kept_until_they_count(backend):
    """Of four steps of 0.3 at threshold 1 the first three are kept back, and the fourth brings all of them."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval().double()
    nn.init.ones_(network[0].weight)
    start = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    model = deltaconvert.convert(network, start, threshold={"input": 1.0}, backend=backend)
    seen = [float(model(start + 0.3 * t).max()) for t in range(6)]
    assert seen == pytest.approx([0, 0, 0, 0, 1.2, 1.2])


def test_a_change_of_exactly_the_threshold_is_dropped(backend):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).eval().double()
    nn.init.ones_(network[0].weight)
    start = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    for rules in ({"input": 0.5}, {"activation": 0.5}):
        model = deltaconvert.convert(network, start, threshold=rules, backend=backend)
        seen = [float(model(start + step).max()) for step in (0, 0.5, -0.5, 0.75, 0.25)]
        assert seen == [1, 1, 1, 1.75, 1.75]
