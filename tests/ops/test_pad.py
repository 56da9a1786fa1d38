"""ops/pad.py"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

MODES = ["constant", "reflect", "replicate", "circular"]
sides = st.tuples(*[st.integers(-2, 3)] * 4)


def legal(shape, pads, mode, value=None):
    try:
        return 0 not in F.pad(torch.zeros(shape), pads, mode, value).shape
    except (RuntimeError, NotImplementedError):
        return False


@settings(max_examples=examples(25))
@given(
    pads=sides,
    mode=st.sampled_from(MODES),
    value=st.sampled_from([None, 0.0, -1.5, float("-inf")]),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_padding(backend, pads, mode, value, size, batch, seed):
    value = value if mode == "constant" else None
    assume(mode != "circular" or min(pads) >= 0)
    assume(any(pads) and legal((batch, 2, *size), pads, mode, value))
    module = Call(lambda m, x: F.pad(x, pads, mode, value))
    check_operator(module, (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "module",
    [
        nn.ZeroPad2d((1, 2, 0, 3)),
        nn.ConstantPad2d(2, 0.5),
        nn.ConstantPad2d((-1, 3, 1, -2), -1.0),
        nn.ReflectionPad2d((3, 1, 2, 0)),
        nn.ReplicationPad2d((0, 9, 1, 2)),
        nn.CircularPad2d((2, 1, 8, 3)),
    ],
    ids=str,
)
def test_modules(backend, module, dtype):
    check_operator(module, (2, 3, 8, 7), dtype=dtype, backend=backend)


SPELLINGS = {
    "width alone": lambda m, x: F.pad(x, (1, 2)),
    "a list": lambda m, x: F.pad(input=x, pad=[0, 1, 2, 0], value=3),
    "channels": lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "channels and pixels": lambda m, x: F.pad(x, (0, 1, 2, 0, 3, -1), "constant", -1.0),
    "shortcut of a small ResNet": lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)).relu(),
    "constant_pad_nd": lambda m, x: torch.constant_pad_nd(x, (1, 1), 2.0),
    "to a multiple of 8": lambda m, x: F.pad(x, (0, -x.shape[3] % 8, 0, -x.size(2) % 8), mode="replicate"),
    "with a tail": lambda m, x: (F.pad(x, (2, 2, 2, 2), "reflect") * 2 + 1).relu(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(backend, name):
    check_operator(Call(SPELLINGS[name]), (2, 2, 7, 9), threshold=0.1, backend=backend)


def test_between_convolutions(backend):
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(6, 4, 3), nn.ZeroPad2d((0, 1, 0, 1))
    )
    check_operator(network, (2, 3, 11, 8), dtype=torch.float32, threshold=0.1, backend=backend)


DENSE = {
    "the batch": (lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), "more than height and width"),
    "round and cropped": (lambda m, x: F.pad(x, (0, -2, 1, 0), "circular"), "crops and pads round"),
    "a matrix": (lambda m, x: F.pad(x.flatten(2), (1, 1)), "not N C H W"),
    "by what a frame says": (lambda m, x: F.pad(x, (0, x.argmax() * 0 + 1)), "computed in every frame"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), (2, 2, 6, 6), backend=backend, expect="dense", reason=reason)
