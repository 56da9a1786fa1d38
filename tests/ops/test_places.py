"""ops/places.py"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

A = (2, 4, 7, 9)
slices = st.builds(
    slice, st.one_of(st.none(), st.integers(-3, 3)), st.one_of(st.none(), st.just(-1)), st.integers(1, 3)
)


@settings(max_examples=examples(25))
@given(rows=slices, cols=slices, channels=slices, batch=st.integers(1, 2), seed=st.integers(0, 99))
def test_any_crop(backend, rows, cols, channels, batch, seed):
    assume(0 not in torch.zeros(1, 5, 6, 7)[:, channels, rows, cols].shape)
    module = Call(lambda m, x: x[:, channels, rows, cols])
    check_operator(module, (batch, 5, 6, 7), threshold=0.1, backend=backend, seed=seed)


PLACES = {
    "rows": lambda m, x: x[:, :, 1:3],
    "columns": lambda m, x: x[:, :, :, 2:-1],
    "columns behind dots": lambda m, x: x[..., 2:],
    "channels behind dots": lambda m, x: x[..., 1:3, :, :],
    "dots between": lambda m, x: x[:, 1:, ..., 2:4],
    "all of it": lambda m, x: x[:] * 2,
    "nothing taken away": lambda m, x: x[:, :, :, :] * 2,
    "focus": lambda m, x: torch.cat(
        [x[..., ::2, :-1:2], x[..., ::2, 1::2], x[..., 0:9:2, 0:8:2], x[..., ::2, 1::2]], 1
    ),
    "centre": lambda m, x: x[..., x.shape[2] // 4 : -2, x.shape[3] // 4 : x.shape[3] // 4 + 5],
    "like another": lambda m, x: x[:, :, : F.avg_pool2d(x, 2).shape[2]] + 1,
    "narrow": lambda m, x: x.narrow(2, 1, 4).narrow(-1, -5, 3),
    "torch.narrow": lambda m, x: torch.narrow(x, dim=1, start=1, length=2),
    "split of rows": lambda m, x: x.split(2, 2)[1],
    "chunk of columns": lambda m, x: x.chunk(2, 3)[0].relu(),
    "roll": lambda m, x: torch.roll(x, 2, 2),
    "roll both": lambda m, x: x.roll((-1, 11), (2, 3)),
    "roll twice along one": lambda m, x: torch.roll(x, shifts=(1, 3), dims=(-1, -1)),
    "flip": lambda m, x: x.flip(-1),
    "flip both": lambda m, x: torch.flip(x, [2, 3]),
    "flip by several": lambda m, x: x.flip(2, 1),
    "flip channels": lambda m, x: x.flip(dims=(1,)),
}


@pytest.mark.parametrize("name", PLACES)
def test_places(backend, name):
    check_operator(Call(PLACES[name]), A, threshold=0.1, backend=backend)


def test_in_a_network(backend):
    network = Call(
        lambda m, x: m.b(torch.cat([m.a(x)[:, :, 1:-1, 1:-1], x.flip(2)[:, :, 2:-2, 2:-2]], 1)).roll(1, 3),
        a=nn.Conv2d(4, 6, 3, bias=False),
        b=nn.Conv2d(10, 5, 3, padding=1),
    )
    check_operator(network, (2, 4, 12, 11), dtype=torch.float32, threshold=0.1, backend=backend)


DENSE = {
    "a row": (lambda m, x: x[:, :, 1], "something else than slices"),
    "chosen rows": (lambda m, x: x[:, :, [1, 0]], "something else than slices"),
    "a stream": (lambda m, x: x[:1], "more than channels, rows and columns"),
    "columns of a matrix": (lambda m, x: x.flatten(2)[..., 1:], "not N C H W"),
    "rolled channels": (lambda m, x: x.roll(1, 1), "more than height and width"),
    "rolled flat": (lambda m, x: x.roll(1), "more than height and width"),
    "streams turned round": (lambda m, x: x.flip(0), "turns the batch round"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), A, backend=backend, expect="dense", reason=reason)
