"""ops/spatial_norm.py, and global response normalisation (ConvNeXt V2) in both layouts."""

import pytest
import torch
from oracle import Call, check_operator
from torch import nn

A = (2, 6, 5, 7)
NORMS = {
    "norm": lambda m, x: x.norm(p=2, dim=(2, 3), keepdim=True) * x,
    "torch.norm": lambda m, x: x / (torch.norm(x, dim=(-1, -2), keepdim=True) + 1),
    "vector_norm": lambda m, x: torch.linalg.vector_norm(m.conv(x), 2, (2, 3), True),
    "linalg.norm": lambda m, x: torch.linalg.norm(x, dim=(2, 3), keepdim=True) - x,
}
PARTS = {"conv": nn.Conv2d(6, 4, 3, padding=1)}


@pytest.mark.parametrize("name", NORMS)
def test_spellings(backend, name):
    check_operator(Call(NORMS[name], **PARTS), A, threshold=0.1, backend=backend)


@pytest.mark.parametrize("size", [(1, 1), (1, 130), (33, 34)])
def test_sizes(backend, size):
    check_operator(Call(NORMS["norm"]), (2, 6, *size), dtype=torch.float32, backend=backend)


class Response(nn.Module):
    """What a channel answers over the whole map, beside the mean of all channels."""

    def __init__(self, last):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.dims, self.channels = ((1, 2), -1) if last else ((2, 3), 1)
        self.shape = (1, 1, 1, -1) if last else (1, -1, 1, 1)

    def forward(self, x):
        energy = x.norm(p=2, dim=self.dims, keepdim=True)
        share = energy / (energy.mean(dim=self.channels, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(self.shape), self.weight.view(self.shape), x * share)


@pytest.mark.parametrize("last", [False, True])
def test_global_response_normalisation(backend, last):
    torch.manual_seed(0)
    network = Call(
        (lambda m, x: m.out(m.response(m.into(x.permute(0, 2, 3, 1)).relu())).permute(0, 3, 1, 2) + x)
        if last
        else (lambda m, x: m.response(m.conv(x))),
        response=Response(last),
        into=nn.Linear(6, 8),
        out=nn.Linear(8, 6),
        conv=nn.Conv2d(6, 8, 1),
    )
    check_operator(network, A, threshold=0.1, backend=backend)


DENSE = {
    "over the width": (
        lambda m, x: x.norm(p=2, dim=(1, 3), keepdim=True),
        "not a norm over height and width",
    ),
    "largest value of matrices": (lambda m, x: torch.linalg.norm(x, 2, (2, 3), True), "of matrices"),
    "another order": (lambda m, x: x.norm(p=1, dim=(2, 3), keepdim=True), "along dimensions 2, 3"),
    "no keepdim": (lambda m, x: x.norm(dim=(2, 3)), "not N C H W"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), A, backend=backend, expect="dense", reason=reason)
