"""ops/batch_norm.py: where it is folded and where it stays an operator."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator, scripted_video
from torch import nn

import deltaconvert


def norm(channels, affine=True):
    """A batch norm as training leaves it; eps so large that forgetting it shows."""
    module = nn.BatchNorm2d(channels, eps=0.1, affine=affine)
    module.running_mean.uniform_(-1, 1)
    module.running_var.uniform_(0.2, 3)
    if affine:
        nn.init.uniform_(module.weight, -2, 2)
        nn.init.uniform_(module.bias, -1, 1)
    return module.eval()


NETWORKS = {
    "alone": lambda: nn.Sequential(norm(3)),
    "without weights": lambda: nn.Sequential(norm(3, affine=False)),
    "after a convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm(4)),
    "after one without bias": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(4, affine=False)),
    "after groups": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), norm(6)),
    "after a transposed one": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), norm(4)),
    "after transposed groups": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, 2, 1, 1, groups=3, bias=False), norm(6)
    ),
    "twice": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), norm(4)),
    "before a convolution with padding": lambda: nn.Sequential(norm(3), nn.Conv2d(3, 4, 3, padding=1)),
    "behind a fork": lambda: Call(lambda m, x: m.bn(c := m.conv(x)) + c, bn=norm(4), conv=nn.Conv2d(3, 4, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(backend, name, dtype):
    check_operator(NETWORKS[name](), (2, 3, 6, 5), dtype=dtype, threshold=0.1, backend=backend)


FUNCTIONS = {
    "F": lambda m, x: F.batch_norm(x, m.mean, m.var, m.weight, m.bias, eps=0.1),
    "torch": lambda m, x: torch.batch_norm(x, m.weight, m.bias, m.mean, m.var, False, 0.1, 0.1, False),
}


@pytest.mark.parametrize("home", FUNCTIONS)
def test_function(backend, home):
    bn, call = norm(3), FUNCTIONS[home]
    module = Call(call, mean=bn.running_mean, var=bn.running_var, weight=bn.weight, bias=bn.bias)
    check_operator(module, (2, 3, 6, 5), backend=backend)


def test_statistics_of_the_frame_stay_dense(backend):
    module = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    check_operator(module, (2, 3, 6, 5), backend=backend, expect="dense", reason="statistics of the frame")


def test_folded_away():
    model = deltaconvert.convert(
        NETWORKS["after a convolution"]().eval(), scripted_video((1, 3, 6, 5), torch.float32)[0]
    )
    assert [row.operator for row in model.explain().rows if row.kind == "delta"] == ["Conv2d"]
