"""Modules that do not do what their class does: hooks, weights made of weights, memories, wrappers."""

from __future__ import annotations

import warnings
from collections import deque
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from between import SHAPE, Two, check, conv, kinds
from oracle import assert_close, assert_same_bits, scripted_video
from torch import nn
from torch.nn.utils import parametrizations, prune

import deltaconvert
from deltaconvert.errors import DeltaConvertError, UnsupportedModel
from deltaconvert.ops.base import is_known


def hooked():
    network = Two()
    network.first.register_forward_hook(lambda module, inputs, output: output * 2)
    network.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return network


def own_forward():
    network = Two()
    network.between.forward = lambda x: x.sigmoid() * 3
    return network


def own_padding():
    """As images that are to tile are made."""

    def in_a_circle(self, x, weight, bias):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)

    network = Two()
    network.first._conv_forward = MethodType(in_a_circle, network.first)
    return network


def hooked_root():
    network = Two()
    network.register_forward_hook(lambda module, inputs, output: output.tanh())
    return network


class Writes(nn.Module):
    """Writes to its input where that is bright, which cannot be traced."""

    def forward(self, x):
        if (x > 1.5).any():
            x += 1
        return x * 2


@torch.fx.wrap
def written(x):
    """Writes to its input, always."""
    if float(x.detach().max()) > -100:
        x += 1
    return x * 2


class WritesOnce(Two):
    """read: by whom else."""

    def __init__(self, part=None, read=None):
        super().__init__()
        self.part, self.read = part, read

    def forward(self, x):
        y = self.first(4 * x)
        z = self.last(written(y) if self.part is None else self.part(y))
        return z if self.read is None else (z, self.read(y))


@pytest.mark.parametrize("make", [hooked, own_forward, own_padding, hooked_root])
def test_what_changes_a_module_is_seen(backend, make):
    assert set(kinds(check(make(), backend)).values()) == {"delta"}


@pytest.mark.parametrize(
    "network",
    [lambda: WritesOnce(Writes()), WritesOnce, lambda: WritesOnce(read=torch.relu)],
)
def test_what_is_written_by_code_that_stays_whole_is_not_the_state(backend, network):
    dense = network().eval()
    frames = scripted_video(SHAPE, torch.float32)[:6]
    model = deltaconvert.convert(dense, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        with torch.no_grad():
            assert_close(model(frame), dense(frame), f"frame {t}")


def test_a_write_that_the_example_does_not_show_is_not_lost(backend):
    """The frame after starts over."""
    network = WritesOnce(Writes(), torch.relu).eval()
    dark, bright = torch.zeros(SHAPE), torch.ones(SHAPE)
    model = deltaconvert.convert(network, dark, backend=backend)
    with pytest.raises(DeltaConvertError, match=r"part writes to its input .* on the example"):
        model(bright)
    with torch.no_grad():
        assert_close(model(dark), network(dark))
    model = deltaconvert.convert(network, bright, backend=backend)
    for frame in (dark, bright):
        with torch.no_grad():
            assert_close(model(frame), network(frame))


def test_a_word_in_the_place_of_a_method_changes_nothing():
    layer = conv(3, 4)
    layer.type = "conv"
    assert is_known(layer)


def test_a_forward_of_its_own_is_traced(backend):
    """Its class's would run as well."""
    network = Two()
    network.features = MethodType(lambda self, x: self.between(self.first(x)), network)
    network.forward = network.features
    assert check(network, backend).info["capture"] == "traced symbolically"


def test_a_hook_that_hides_makes_its_module_an_island(backend):
    network = Two()
    network.first.register_forward_hook(
        lambda module, inputs, output: output * (1 + float(output[0, 0, 0, 0] > 9))
    )
    model = check(network, backend)
    (island,) = model.explain().islands
    assert island.path == "first" and "cannot be traced" in island.reason


def weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many checkpoints
        return nn.utils.weight_norm(module)


def pruned(module):
    prune.l1_unstructured(module, "weight", 0.5)
    return module


@pytest.mark.parametrize(
    "make",
    [
        weight_norm,
        nn.utils.spectral_norm,
        pruned,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)
def test_weights_that_are_made_of_weights(backend, make, tmp_path):
    network = Two()
    make(network.first), make(network.last)
    network(torch.rand(SHAPE))  # leaves results of gradients behind, which torch does not copy
    kind, weights = type(network.first), [p.clone() for p in network.double().parameters()]
    model = check(network, backend)
    assert model.explain().delta_share == 1 and not model.explain().islands
    assert type(network.first) is kind and all(map(torch.equal, weights, network.parameters()))
    model.save(tmp_path / "net.delta")
    frame = scripted_video(SHAPE)[0]
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)
    model.reset()
    assert_same_bits(again(frame), model(frame), "from the file")


class Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 4, 1, 1))

    def forward(self, x):
        self.seen.mul_(0.999).add_(0.001 * x.mean((0, 2, 3), keepdim=True))
        return x - self.seen


class Before(nn.Module):
    """Says nothing about the frame before on the first one, nor on the same frame again."""

    def __init__(self):
        super().__init__()
        self.before = deque(maxlen=1)

    def forward(self, x):
        change = x - self.before[-1] if self.before else torch.zeros_like(x)
        self.before.append(x)
        return change


class Count(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("memory", [Average, Before, Count])
def test_networks_that_remember_run_as_they_were(backend, memory):
    """Around the parts that do not, and on each frame right."""
    model = check(Two(memory()), backend)
    (island,) = model.explain().islands
    assert "remembers: what a call writes to between." in island.reason
    assert [row.path.rpartition(".")[2] for row in model.explain().rows if row.kind == "delta"] == [
        "first",
        "last",
    ]
    assert model.explain().delta_share == 1


def test_a_network_that_only_remembers_is_refused(backend):
    with pytest.raises(UnsupportedModel, match=r"Count remembers: .* calls .* an input and an output"):
        deltaconvert.convert(Count().eval(), torch.rand(SHAPE), backend=backend)


class Keeps(nn.Module):
    """Writes to itself what changes no answer: a count, the grid of a size."""

    def __init__(self):
        super().__init__()
        self.grid = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.grid is None or self.grid.shape[-1] != x.shape[-1]:
            self.grid = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype).view(1, 1, 1, -1)
        return x * self.grid


def test_networks_that_write_to_themselves_convert_whole(backend):
    model = check(Two(Keeps()), backend)
    assert model.info["capture"] == "traced symbolically"


def test_what_torch_compiled_converts_as_it_was(backend):
    """For all sizes, under the names that it had before; the compiled one stays compiled."""
    plain = Two(nn.Sequential(conv(4, 4), nn.ReLU()))
    inside = Two(torch.compile(nn.Sequential(conv(4, 4), nn.ReLU()), backend="eager"))
    for network in (torch.compile(plain, backend="eager"), inside, nn.DataParallel(plain)):
        model = check(network, backend)
        assert model.info["capture"] == "traced symbolically"
        assert [r.path for r in model.explain().rows if r.macs] == ["first", "between.0", "last"]
    assert hasattr(inside.between, "_orig_mod")


class TrainsItsCopies(Two):
    """As torchvision's feature extractors do."""

    def __deepcopy__(self, memo):
        made = type(self)(nn.BatchNorm2d(4)).to(self.first.weight)
        made.load_state_dict(self.state_dict())
        return made.train()


def test_copies_compute_as_the_network_does(backend):
    network = TrainsItsCopies(nn.BatchNorm2d(4)).eval().double()
    network.between.running_mean.fill_(0.3), network.between.running_var.fill_(2.0)
    frame = scripted_video(SHAPE)[0]
    model = deltaconvert.convert(network, frame, backend=backend)
    with torch.no_grad():
        assert_close(model(frame), network(frame))
