"""Calls that hide from tracing: TorchScript, chance, functions that torch.fx is told not to look into."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from between import SHAPE, Two, check, conv, kinds
from oracle import assert_close, leaves, scripted_video
from torch import nn

import deltaconvert


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
        parts = self.first(x).chunk(2, 1) if len(x) else ()  # what symbolic tracing cannot count
        inside = (parts[0] > -0.5) & (parts[1] < 0.5) | (parts[0] > 1)
        return self.last(torch.cat([F.relu(parts[0]) * inside, parts[1]], 1))


def test_logic_in_exported_graphs(backend, tmp_path):
    model = check(Masks(), backend)
    assert "torch.export" in model.info["capture"]
    assert not model.explain().islands
    model.save(tmp_path / "net.delta")


def test_a_failing_attempt_prints_nothing(backend, capfd, caplog):
    class Reshapes(nn.Module):
        def forward(self, x):
            n, rows = int(x.shape[0]), x.shape[1:].numel()  # no symbols: exported, for this batch alone
            return x.reshape(n, rows).view(x.shape) + 1

    class Values(nn.Module):
        def forward(self, x):
            return x if x.max() > 1e9 else x + 1

    class ForTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("each", torch.rand(2, 4, 1, 1))  # for two images, as it is tried with three

        def forward(self, x):
            x = x - self.each
            return x if x.dim() == 4 else x[None]

    for network in (Two(Reshapes()), Two(Values()), Two(ForTwo())):
        check(network, backend)
    assert "".join(capfd.readouterr()) == "" and not caplog.records


class Faint(Two):
    """Forgot training=self.training, and answers in small numbers."""

    def forward(self, x):
        return 1e-6 * F.dropout(self.last(self.first(x)))


def test_chance_is_seen_however_small_its_numbers(backend):
    model = deltaconvert.convert(Faint().eval(), torch.rand(SHAPE), backend=backend)
    assert "F.dropout without training=self.training" in model.info["capture"]


class KeepsAll(Two):
    def forward(self, x):
        return self.last(F.dropout(self.first(x), 0.0))


def test_dropout_of_nothing_is_nothing(backend, tmp_path):
    model = check(KeepsAll(), backend)
    assert not model.explain().islands
    model.save(tmp_path / "net.delta")


@torch.fx.wrap
def halved(x, times):
    for _ in range(times if x.shape[2] > 4 else 0):
        x = F.avg_pool2d(x, 2)
    return x


@torch.fx.wrap
def brightened(x):
    return x * 2 if float(x.mean()) > 1e9 else x + 1


class Wrapped(Two):
    """Functions that torch.fx is told not to look into; one of them it cannot."""

    def forward(self, x):
        return self.last(halved(self.first(x), 1)), brightened(x)


def test_wrapped_functions_are_looked_into(backend):
    model = check(Wrapped(), backend)
    assert model.info["capture"] == "traced symbolically"
    assert [row.reason for row in model.explain().islands] == ["deltaconvert has no operator for brightened"]


class Recurrent(Two):
    """Attention and recurrence over what convolutions see, as torch.nn has them."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.steps = nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        y = self.first(x)
        tokens = F.avg_pool2d(y, 4).flatten(2).transpose(1, 2)
        return self.last(y), self.attend(tokens, tokens, tokens, need_weights=False)[0], self.steps(tokens)[0]


def test_attention_and_recurrence_can_be_saved(backend, tmp_path):
    model = check(Recurrent(), backend)
    assert model.info["capture"] == "traced symbolically"
    assert {"multi_head_attention_forward", "gru"} <= {row.operator for row in model.explain().islands}
    assert model.explain().delta_share < 0.99  # their work is counted
    model.save(tmp_path / "net.delta")
    frame = scripted_video((1, 3, 17, 14))[0]
    for ours, theirs in zip(
        leaves(deltaconvert.load(tmp_path / "net.delta", backend=backend, device=frame.device)(frame)),
        leaves(model(frame)),
        strict=True,
    ):
        assert_close(ours, theirs)
