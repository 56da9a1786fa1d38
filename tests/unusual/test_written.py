"""Networks as people write them."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from between import SHAPE, Two, check, conv
from oracle import assert_close, assert_same_bits, leaves, scripted_video
from torch import nn

import deltaconvert


class Casts(Two):
    """Constants that are brought to the frame's type in every call."""

    def forward(self, x):
        mean = torch.as_tensor([0.4, 0.5, 0.6], dtype=x.dtype, device=x.device)[:, None, None]
        blur = torch.ones(1, 1, 3, 3, device=x.device) / 9
        x = F.conv2d((x - mean) / torch.tensor([0.2]).type_as(x), blur.to(x).repeat(3, 1, 1, 1), groups=3)
        y = self.first(x)
        return self.last(y.to(x) * torch.linspace(0, 1, y.shape[3], dtype=x.dtype, device=x.device))


class Pyramid(nn.Module):
    """One head at three sizes, with a batch norm and a scale for each."""

    def __init__(self):
        super().__init__()
        self.first, self.down, self.head = conv(3, 4), nn.Conv2d(4, 4, 3, 2, 1), conv(4, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(3))
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0 + i)) for i in range(3))

    def forward(self, x):
        maps = [self.first(x)]
        for _ in range(2):
            maps.append(self.down(maps[-1].relu()))
        levels = zip(maps, self.norms, self.scales, strict=True)
        return {"levels": [torch.exp(norm(self.head(y)) * scale) for y, norm, scale in levels], "count": 3}


class WritesInPlace(Two):
    def forward(self, x):
        y = self.first(x)
        also = y = F.relu_(y)
        y += self.first(x)
        y.mul_(0.5).clamp_(-1, 2)
        y[:, :2] *= 2
        y[:, 2:] = y[:, :2].tanh()
        y[..., 0] = 0
        z = self.last(also)
        z[:, :, 1:-1, 1:-1].sigmoid_()
        return z, y


class Pads(nn.Module):
    def __init__(self):
        super().__init__()
        modes = "zeros", "reflect", "replicate", "circular"
        self.modes = nn.ModuleList(nn.Conv2d(3, 2, (3, 5), padding=(1, 2), padding_mode=m) for m in modes)
        self.same = nn.Conv2d(8, 3, (4, 3), padding="same", dilation=(1, 2))
        self.around = nn.Conv2d(3, 3, 2, padding="same", padding_mode="circular")
        self.pads = nn.Sequential(nn.ReflectionPad2d((1, 2, 3, 0)), nn.ConstantPad2d((1, -2, 0, 3), 0.5))

    def forward(self, x):
        y = self.pads(self.around(self.same(torch.cat([each(x) for each in self.modes], 1).relu())))
        return F.pad(y, (2, 1, 0, 2), mode="reflect"), F.pad(y, (-1, 2, 3, -2), value=float(1))


class Repeated(Two):
    """A frame is repeated along the batch, each with noise of its own, as ensembles of one network have it."""

    def forward(self, x):
        noise = torch.linspace(-0.1, 0.1, 2 * len(x), dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        one, other = self.last(self.first(x.repeat(2, 1, 1, 1) + noise)).chunk(2)
        return one + other


def test_a_batch_that_grows_says_the_way_out(backend):
    rows = check(Repeated(), backend).explain().islands
    assert "once for each part" in next(row.way_out for row in rows if row.path == "first")


class Standardised(nn.Conv2d):
    """Weights made of weights in forward, in a class that is a convolution."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = (self.weight - flat.mean(1).view(-1, 1, 1, 1)) / (flat.std(1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Learnt(Two):
    """Goes by numbers that were learnt, in Python."""

    def __init__(self):
        super().__init__()
        self.gain, self.level = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor([0.5, -1.0]))

    def forward(self, x):
        y = self.first(x) * float(self.gain)
        y = y.relu() if self.level[0] * 2 > 0 else -y
        return self.last(F.avg_pool2d(y, int(self.gain + 0.5))) + self.level[1].item()


def test_numbers_that_were_learnt(backend):
    model = check(Learnt(), backend)
    assert model.info["capture"] == "traced symbolically"


class Deep(Two):
    """Asks for sizes behind so many sums that the ways through them cannot be counted one by one."""

    def forward(self, x):
        y = self.first(x)
        for _ in range(40):
            y = y + y.tanh()
        return self.last(y if y.shape[2] > 8 else -y)


@pytest.mark.timeout(30)
def test_numbers_behind_many_sums(backend):
    assert check(Deep(), backend).info["capture"] == "traced symbolically"


class PadsAsTensorFlow(Two):
    """Strided convolutions whose padding follows from the size in forward, as timm's tf_ networks have them."""

    def forward(self, x):
        y = self.first(x)
        down, right = (max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0) for side in y.shape[-2:])
        y = F.pad(y, (right // 2, right - right // 2, down // 2, down - down // 2))
        y = F.conv2d(y, self.last.weight, self.last.bias, stride=2)
        return y, y.flatten(2).sum(2) / math.prod(y.shape[2:]) + math.sqrt(y.shape[1])


class Rounds(Two):
    """Sizes that Python rounds."""

    def forward(self, x):
        y = self.first(x)
        size = [round(side * scale) for side, scale in zip(y.shape[2:], (1.3, 0.7), strict=True)]
        return F.interpolate(y, size, mode="bilinear"), y * round(y.shape[3] / 7, 2)


@pytest.mark.parametrize("network", [PadsAsTensorFlow, Rounds])
def test_sizes_computed_in_python_can_be_saved(network, backend, tmp_path):
    model = check(network(), backend)
    assert model.info["capture"] == "traced symbolically"
    model.save(tmp_path / "net.delta")
    frame = scripted_video((2, 3, 15, 9))[0]  # another size, of the same parity
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)
    with torch.no_grad():
        assert_close(list(again(frame)), list(network().double().to(frame.device)(frame)))


class Scaled(nn.Sequential):
    """A Sequential that does more than its parts, and leaves one of them out."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        for part in self:
            x = part(x) if not isinstance(part, nn.Dropout) else x
        return x * self.gain


class Reads(nn.Module):
    """Text from an image: columns of the map are the steps of an LSTM."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.steps = nn.LSTM(4 * 6, 5, bidirectional=True, batch_first=True)
        self.letters = nn.Linear(10, 7)

    def forward(self, x):
        y = self.maps(x).permute(0, 3, 1, 2).flatten(2)
        return self.letters(self.steps(y)[0]).log_softmax(2)


class Fourier(Two):
    def forward(self, x):
        y = self.first(x)
        spectrum = torch.fft.rfft2(y, norm="ortho")
        spectrum = torch.cat([spectrum[:, :2], spectrum[:, 2:] * 0.5], 1)
        y = y + torch.fft.irfft2(spectrum, s=y.shape[-2:], norm="ortho")
        return self.last(y), torch.complex(y[:, :2], y[:, 2:]).abs(), torch.view_as_real(spectrum)


class Pairs(Two):
    """Channels two by two are complex numbers; another output is a bit of each number."""

    def forward(self, x):
        y = self.first(x)
        n, c, h, w = y.shape
        z = torch.view_as_complex(y.view(n, c // 2, 2, h, w).permute(0, 1, 3, 4, 2).contiguous()) * (1 + 2j)
        return self.last(torch.view_as_real(z).permute(0, 1, 4, 2, 3).reshape(n, c, h, w)), y.view(
            torch.int64
        ) < 0


class ComplexWeights(Two):
    """A convolution on complex maps, between real ones."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Conv2d(2, 2, 1, dtype=torch.complex128)

    def forward(self, x):
        z = self.turn(torch.complex(*self.first(x).chunk(2, 1)))
        z = F.pad(torch.cat([z, z.flip(1)], 1)[:, :, 1:], (0, 0, 1, 0))
        return self.last(z.abs()), z


class Gated(nn.Module):
    """A hidden map that forward makes and refines by the same convolutions: a ConvGRU."""

    def __init__(self):
        super().__init__()
        self.embed, self.gates, self.new, self.last = conv(3, 3), conv(6, 6), conv(6, 3), conv(3, 2)

    def forward(self, x):
        seen = self.embed(x)
        hidden, found = x.new_zeros(x.shape[0], 3, *x.shape[2:]), []
        for _ in range(3):
            keep, take = self.gates(torch.cat([hidden, seen], 1)).sigmoid().chunk(2, 1)
            new = self.new(torch.cat([take * hidden, seen], 1)).tanh()
            hidden = (1 - keep) * hidden + keep * new
            found.append(self.last(hidden))
        return found


class OverTime(nn.Module):
    """Four frames in the channels of one, and a 3D convolution over them."""

    def __init__(self):
        super().__init__()
        self.time, self.last = nn.Conv3d(1, 4, (3, 3, 3), padding=1), conv(4, 2)

    def forward(self, x):
        return self.last(self.time(x[:, None]).amax(2))


class Costs(Two):
    """How a map agrees with its own shifts."""

    def forward(self, x):
        y = self.first(x)
        h, w = y.shape[-2:]
        around = F.pad(y, (1, 1, 1, 1))
        shifted = [around[:, :, i : i + h, j : j + w] for i in range(2) for j in range(2)]
        return self.last(torch.cat([(y * each).mean(1, keepdim=True) for each in shifted], 1))


class Picks(nn.Module):
    """Outputs as long as the frame wants, between parts that convert."""

    def __init__(self):
        super().__init__()
        self.first, self.scores, self.boxes = conv(3, 4), conv(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        y = self.first(x)
        scores = self.scores(y).sigmoid()
        found = []
        for one, score in zip(y, scores, strict=True):
            best = (score[0] > 0.5).nonzero()[:9]
            found.append({"at": best, "boxes": self.boxes(one[:, best[:, 0], best[:, 1]].t())})
        return found


class Skips(nn.Module):
    """Half a U-Net whose up-sampling asks as TorchScript would, and pads what odd sizes lost."""

    def __init__(self):
        super().__init__()
        self.first, self.down, self.up = conv(3, 4), conv(4, 8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.both, self.alone = conv(8, 2), conv(4, 2)

    def joined(self, x, skip):
        if skip is None or not torch.jit.isinstance(skip, torch.Tensor):
            return self.alone(x)
        lost = [int(x.shape[-1] != skip.shape[-1]), int(x.shape[-2] != skip.shape[-2])]
        return self.both(torch.cat([skip, F.pad(x, (0, lost[0], 0, lost[1]), "replicate")], 1))

    def forward(self, x):
        skip = self.first(x).relu()
        up = self.up(self.down(F.max_pool2d(skip, 2)))
        return self.joined(up, skip), self.joined(up, None)


def test_torchscripts_isinstance_is_seen_through(backend):
    model = check(Skips(), backend)
    assert model.info["capture"] == "traced symbolically"
    assert not model.explain().islands


@torch.library.custom_op("deltaconvert_tests::swirl", mutates_args=())
def swirl(x: torch.Tensor) -> torch.Tensor:
    return x.flip(2) + x.mean((2, 3), keepdim=True)


class OwnOperator(Two):
    def forward(self, x):
        return self.last(swirl(self.first(x)))


@pytest.mark.parametrize(
    "make",
    [
        Pyramid,
        WritesInPlace,
        Pads,
        lambda: Two(Standardised(4, 4, 3, padding=1)),
        lambda: Two(Scaled(conv(4, 4), nn.ReLU(), nn.Dropout(), conv(4, 4))),
        Reads,
        Fourier,
        Pairs,
        ComplexWeights,
        Gated,
        OverTime,
        Costs,
        Casts,
        Picks,
        OwnOperator,
    ],
)
def test_networks_as_people_write_them(backend, make):
    torch.manual_seed(0)
    network = make()
    model = check(network, backend)
    convolutions = [r for r in model.explain().rows if r.operator.startswith("Conv2d") and r.path != "turn"]
    assert convolutions and all(row.kind == "delta" for row in convolutions)


class Nearest(Two):
    """The place of the nearest word of a code book, at every pixel."""

    def __init__(self):
        super().__init__()
        self.book = nn.Embedding(5, 4)

    def forward(self, x):
        y = self.first(x)
        n, c, h, w = y.shape
        places = torch.cdist(y.permute(0, 2, 3, 1).reshape(-1, c), self.book.weight).argmin(1)
        return self.last(self.book(places).view(n, h, w, c).permute(0, 3, 1, 2)), places


@pytest.mark.parametrize("make", [Fourier, Pairs, Nearest])
def test_what_is_rarely_written_can_be_saved(backend, make, tmp_path):
    model = check(make(), backend)
    model.save(tmp_path / "net.delta")
    frame = scripted_video(SHAPE)[0]
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)
    model.reset()
    for ours, theirs in zip(leaves(again(frame)), leaves(model(frame)), strict=True):
        assert_same_bits(ours, theirs, "from the file")


def test_a_complex_map_says_why_it_is_dense(backend):
    rows = {row.path: row for row in check(ComplexWeights(), backend).explain().rows}
    assert "complex128: complex maps are not compared" in rows["turn"].reason
    assert "torch.cat([z.real, z.imag], 1)" in rows["turn"].way_out


class Autocast(Two):
    """Half of it in a type of its own, which symbolic tracing does not see."""

    def forward(self, x):
        x = self.first(x).relu()
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.last(x).float()


def quantised():
    """As torch.ao.quantization leaves a network: weights packed in an object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        float_network = nn.Sequential(Two(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))
        return torch.ao.quantization.quantize_dynamic(float_network.eval(), {nn.Linear})


@pytest.mark.parametrize(
    "make, reason, way",
    [
        (Autocast, "it runs under torch.autocast", "cast by hand"),
        (quantised, "linear_dynamic is quantised", "convert the float network"),
    ],
)
def test_what_is_no_tensor_says_the_way_out(make, reason, way, tmp_path):
    """It runs, dense; files and explain() say what to do about it."""
    if make is quantised and torch.backends.quantized.engine == "none":
        pytest.skip("this torch cannot quantise")
    network, video = make().eval(), scripted_video(SHAPE, torch.float32)
    delta = deltaconvert.convert(network, video[0], backend="reference")
    for t, frame in enumerate(video):
        assert_close(delta(frame), network(frame), f"frame {t}")
    (row,) = (row for row in delta.explain().islands if row.reason == reason)
    assert way in row.way_out
    assert make is quantised or row.macs > 0
    for write in (delta.save, partial(deltaconvert.export_pt2, delta)):
        with pytest.raises(
            deltaconvert.DeltaConvertError, match=f"{row.path} keeps a .*, which is no tensor: {way}"
        ):
            write(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
