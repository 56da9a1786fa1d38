"""Networks that people write and nobody expects: hooks, memories, weights made of weights, calls that hide."""

from __future__ import annotations

import warnings
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, assert_same_bits, leaves, scripted_video
from torch import nn
from torch.nn.utils import parametrizations, prune

import deltaconvert
from deltaconvert.errors import UnsupportedModel
from deltaconvert.twin import twin

SHAPE = (2, 3, 13, 11)


def conv(inner, outer, size=3):
    return nn.Conv2d(inner, outer, size, padding=size // 2)


class Two(nn.Module):
    """Two convolutions with something between."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = conv(3, 4), between or nn.ReLU(), conv(4, 2)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def check(network, backend):
    """The conversion is the network on every frame; the network stays as it was."""
    network = network.eval().double()
    frames = scripted_video(SHAPE)[:6]
    dense = twin(network)
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for frame in frames:
        with torch.no_grad():
            expected = dense(frame.clone())
        for ours, theirs in zip(leaves(model(frame)), leaves(expected), strict=True):
            assert_close(ours, theirs)
    return model


def kinds(model):
    return {row.operator: row.kind for row in model.explain().rows if row.macs}


# --- modules that do not do what their class does --------------------------------------------------------------------


def hooked():
    network = Two()
    network.first.register_forward_hook(lambda module, inputs, output: output * 2)
    network.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return network


def own_forward():
    network = Two()
    network.between.forward = lambda x: x.sigmoid() * 3
    return network


def hooked_root():
    network = Two()
    network.register_forward_hook(lambda module, inputs, output: output.tanh())
    return network


@pytest.mark.parametrize("make", [hooked, own_forward, hooked_root])
def test_what_changes_a_module_is_seen(backend, make):
    assert set(kinds(check(make(), backend)).values()) == {"delta"}


def test_a_hook_that_hides_makes_its_module_an_island(backend):
    network = Two()
    network.first.register_forward_hook(
        lambda module, inputs, output: output * (1 + float(output[0, 0, 0, 0] > 9))
    )
    model = check(network, backend)
    (island,) = model.explain().islands
    assert island.path == "first" and "cannot be traced" in island.reason


# --- weights that are made of weights --------------------------------------------------------------------------------


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


# --- networks that remember ------------------------------------------------------------------------------------------


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


# --- calls that hide -------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = conv(4, 4)

    def forward(self, x):
        if bool(x.sum() > 1e9):
            return x
        return self.inner(x)


def test_torchscript_inside(backend):
    """A traced program is captured by torch.export; one with branches is an island."""
    program = torch.jit.trace(conv(4, 4).double().eval(), torch.zeros(1, 4, 5, 5, dtype=torch.float64))
    model = check(Two(program), backend)
    (island,) = model.explain().islands
    assert "a program of TorchScript" in island.reason
    model = check(Two(torch.jit.script(Branching())), backend)
    (island,) = model.explain().islands
    assert island.path == "between" and "a program of TorchScript" in island.reason


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.eye(4).flip(0).to_sparse())

    def forward(self, x):
        rows = torch.sparse.mm(self.turn, x.transpose(0, 1).flatten(1))
        return rows.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def test_sparse_weights(backend):
    assert set(kinds(check(Two(Sparse()), backend)).values()) == {"delta"}


def test_synchronised_batch_norm(backend):
    """Whoever trained on several GPUs left it in the network; in eval mode it is a batch norm."""
    model = check(nn.SyncBatchNorm.convert_sync_batchnorm(Two(nn.BatchNorm2d(4))), backend)
    assert not model.explain().islands


class Masks(Two):
    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))  # what symbolic tracing cannot make
        inside = (parts[0] > -0.5) & (parts[1] < 0.5) | (parts[0] > 1)
        return self.last(torch.cat([F.relu(parts[0]) * inside, parts[1]], 1))


def test_logic_in_exported_graphs(backend, tmp_path):
    model = check(Masks(), backend)
    assert "torch.export" in model.info["capture"]
    assert not model.explain().islands
    model.save(tmp_path / "net.delta")


def test_a_failing_attempt_prints_nothing(backend, capfd):
    class Reshapes(nn.Module):
        def forward(self, x):
            n, rows = int(x.shape[0]), x.shape[1:].numel()  # no symbols: exported, for this batch alone
            return x.reshape(n, rows).view(x.shape) + 1

    class Values(nn.Module):
        def forward(self, x):
            return x if x.max() > 1e9 else x + 1

    for network in (Two(Reshapes()), Two(Values())):
        check(network, backend)
    assert "".join(capfd.readouterr()) == ""
