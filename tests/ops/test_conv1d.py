"""ops/conv1d.py"""

import pytest
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn

A = (2, 6, 4, 5)
PIXELS = {
    "module": lambda m, x: m.conv(x.flatten(2)).view(2, 8, 4, 5),
    "function": lambda m, x: F.conv1d(x.reshape(2, 6, -1), m.conv.weight).relu().unflatten(2, (4, 5)),
    "a projection of attention": lambda m, x: m.conv(
        m.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2)
    ).view(2, 8, 4, 5),
    "rows": lambda m, x: m.conv(x.mean(3))[..., None],
}
DENSE = {
    "a kernel": (lambda m, x: m.wide(x.flatten(2)), "it runs along one dimension"),
    "groups": (
        lambda m, x: F.conv1d(x.flatten(2), m.conv.weight[:6, :1], groups=6),
        "it runs along one dimension",
    ),
    "no pixels": (lambda m, x: m.conv(x.cumsum(3)[..., 0]), "its input getitem has shape"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels(backend, name):
    check_operator(
        Call(PIXELS[name], conv=nn.Conv1d(6, 8, 1), norm=nn.LayerNorm(6)), A, threshold=0.1, backend=backend
    )


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    network = Call(function, conv=nn.Conv1d(6, 8, 1), wide=nn.Conv1d(6, 8, 3))
    check_operator(network, A, backend=backend, expect="dense", reason=reason)
