"""ops/put.py: x[index] = value."""

import pytest
import torch
from oracle import Call, check_operator
from torch import nn

from deltaconvert.ops.put import put

A = (2, 6, 9, 7)


def written(index, value):
    """A copy of x with a part written anew, as networks do it."""

    def run(m, x):
        y = m.conv(x)
        y[index] = value if isinstance(value, float) else value(m, x)
        return y

    return Call(run, conv=nn.Conv2d(6, 6, 3, padding=1))


PARTS = {
    "a channel": ((slice(None), 0), 0.5),
    "channels": ((slice(None), slice(1, 3)), lambda m, x: x[:, :2].sigmoid()),
    "every other row": ((slice(None), slice(None), slice(1, None, 2)), lambda m, x: x[:, :, :4]),
    "the last column": ((..., -1), -1.0),
    "a box": ((slice(None), slice(2, 5), slice(1, -1), slice(-3, None)), lambda m, x: x[:, :3, 2:, :3]),
    "a row stretched": ((slice(None), slice(None), slice(3, 6)), lambda m, x: x[:, :, 8:]),
    "nothing": ((slice(None), slice(None), slice(20, None)), 1.0),
    "all": (..., lambda m, x: x.relu()),
}


@pytest.mark.parametrize("name", PARTS)
def test_put(backend, name):
    check_operator(written(*PARTS[name]), A, threshold=0.1, backend=backend)


def test_where_a_mask_says(backend):
    def run(m, x):
        y = m.conv(x)
        y[y < 0] = 0
        return y

    check_operator(Call(run, conv=nn.Conv2d(6, 2, 1)), A, backend=backend)


def test_spellings(backend):
    network = Call(
        lambda m, x: torch.slice_scatter(m.conv(x), x[:, :, 2:4], 2, 5, -1, 2), conv=nn.Conv2d(6, 6, 1)
    )
    check_operator(network, (1, 6, 9, 7), backend=backend)
    copied = Call(lambda m, x: m.conv(x).zero_().copy_(x).fill_(2.0) + x, conv=nn.Conv2d(6, 6, 1))
    check_operator(copied, (1, 6, 4, 5), backend=backend)


def test_stays_dense(backend):
    network = written((slice(None), [0, 2]), lambda m, x: x[:, :2])
    check_operator(network, A, backend=backend, expect="dense", reason="something else than slices")
    network = written((slice(None), 0), lambda m, x: x.mean(1))
    check_operator(network, A, backend=backend, expect="dense", reason="something else than slices")


def test_x_stays_as_it_is():
    x = torch.zeros(3)
    assert put(x, 1, 2.0).tolist() == [0, 2, 0] and not x.any()


WITHIN = {
    "channels": lambda m, x, room: room[:, 1:7].copy_(x),
    "rows and columns": lambda m, x, room: room[:, :6, 2:6, 1:-1].copy_(x[:, :, :4, :3]),
    "all of it": lambda m, x, room: room.copy_(torch.cat([x, x[:, :2]], 1)),
}


@pytest.mark.parametrize("name", WITHIN)
def test_within_a_constant(backend, name):
    def run(m, x):
        room = torch.zeros(x.shape[0], 8, *x.shape[2:], dtype=x.dtype, device=x.device)
        WITHIN[name](m, x, room)
        return room

    check_operator(Call(run), (2, 6, 8, 5), threshold=0.1, backend=backend)
