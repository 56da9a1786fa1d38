"""Calls that a file writes in a form of its own, so that a reader can check their bounds before it runs them."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, leaves, scripted_video
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import deltaconvert
from deltaconvert.errors import ContainerError

SAVED = {
    "repeats by weights": lambda m, y: m.last(y.repeat_interleave(m.counts, 1)),
    "repeats by weights, a function": lambda m, y: torch.repeat_interleave(y, repeats=m.counts, dim=1),
    "repeats to a length": lambda m, y: torch.repeat_interleave(y, m.counts, 1, output_size=4),
    "repeats by sizes": lambda m, y: m.last(
        y.mean((2, 3), True).repeat_interleave(y.shape[2] // y.shape[0], 2)
    ),
    "no channels": lambda m, y: m.last(torch.cat([y, torch.empty(y.shape[0], 0, *y.shape[2:]).to(y)], 1)),
    "a place to write to": lambda m, y: torch.empty_like(y).copy_(y).tanh(),
    "a number": lambda m, y: torch.where(y > 0, y, torch.scalar_tensor(2.0, dtype=y.dtype, device=y.device)),
    "types": lambda m, y: y.to(torch.promote_types(y.dtype, torch.float16)),
    "linalg": lambda m, y: (
        torch.linalg.cross(y[:, :3], y[:, 1:], dim=1) + torch.linalg.vector_norm(y[:, :1], dim=0)
    ),
    "as TorchScript calls it": lambda m, y: torch._VF.split(y, 2, 1)[1],
    "products": lambda m, y: torch.tensordot(y, m.turn, dims=([0], [0])),
    "a grid of values": lambda m, y: torch.meshgrid(y.mean((0, 1, 3)), y.mean((0, 1, 2)), indexing="ij"),
    "most frequent values": lambda m, y: (
        y.round().mode(1, keepdim=True)[0] + torch.mode(y.round(), 3, True)[0]
    ),
    "a histogram": lambda m, y: torch.histc(y, 7, -1.0, 1.0) + y.histc(bins=7),
    "windows": lambda m, y: m.last(y * torch.hann_window(y.shape[3], dtype=y.dtype, device=y.device)),
    "special functions": lambda m, y: torch.special.logit(y.sigmoid(), 1e-6) + torch.special.i0(y),
    "dropout of channels": lambda m, y: m.last(torch.feature_dropout(y, 0.5, False)),
    "a flow": lambda m, y: F.grid_sample(
        y, torch.affine_grid_generator(m.turn + y.mean().tanh(), [2, 4, 5, 6], False), align_corners=False
    ),
}


def network(name):
    torch.manual_seed(0)
    parts = {"first": nn.Conv2d(3, 4, 3, padding=1), "last": nn.Conv2d(4, 2, 1)}
    turn = torch.tensor([[[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]]]).repeat(2, 1, 1)
    counts = torch.tensor([1, 2, 0, 1])
    return Call(lambda m, x: SAVED[name](m, m.first(x)), counts=counts, turn=turn, **parts).eval()


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("exported", [False, True])
def test_what_is_saved_loads(backend, name, exported, tmp_path):
    dense = network(name).double()
    video = scripted_video((2, 3, 13, 11))[:4]
    given = exported_by_torch(dense, video[0]) if exported else dense
    deltaconvert.convert(given, video[0], backend=backend).save(tmp_path / "net.delta")
    model = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=video[0].device)
    for t, frame in enumerate(video):
        with torch.no_grad():
            for ours, theirs in zip(leaves(model(frame)), leaves(dense(frame)), strict=True):
                assert_close(ours, theirs, f"frame {t}")


def exported_by_torch(dense, frame):
    try:
        return torch.export.export(dense, (frame,))
    except GuardOnDataDependentSymNode as error:
        if torch.__version__ >= "2.13":  # torch.__version__ compares as versions do
            raise
        pytest.skip(f"torch {torch.__version__} itself does not export it: {str(error).splitlines()[0]}")


def test_repeats_that_follow_from_values_say_the_way_out(tmp_path):
    dense = Call(lambda m, x: x[:, :2].repeat_interleave((x[0, :2, 0, 0] > 9).int() + 1, 1))
    model = deltaconvert.convert(dense.eval(), torch.rand(1, 3, 8, 8), backend="reference")
    with pytest.raises(ContainerError, match="nobody knows how long it gets: give output_size="):
        model.save(tmp_path / "net.delta")
    assert list(tmp_path.iterdir()) == []
