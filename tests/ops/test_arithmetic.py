"""ops/arithmetic.py"""

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

A = (2, 3, 5, 6)
TWO = {
    "+": lambda m, a, b: a + b,
    "+=": lambda m, a, b: operator.iadd(a * 1, b),
    "-": lambda m, a, b: a - b,
    "*": lambda m, a, b: a * b,
    "*=": lambda m, a, b: operator.imul(a * 1, b),
    "/": lambda m, a, b: a / (b.abs() + 1),
    "**": lambda m, a, b: (a.abs() + 1) ** b,
    "torch.add": lambda m, a, b: torch.add(a, b),
    "torch.add other": lambda m, a, b: torch.add(a, other=b),
    "torch.sub": lambda m, a, b: torch.sub(a, b),
    "torch.subtract": lambda m, a, b: torch.subtract(a, b),
    "torch.rsub": lambda m, a, b: torch.rsub(a, b),
    "torch.mul": lambda m, a, b: torch.mul(a, b),
    "torch.multiply": lambda m, a, b: torch.multiply(a, b),
    "torch.div": lambda m, a, b: torch.div(a, b + 9),
    "torch.true_divide": lambda m, a, b: torch.true_divide(a, b + 9),
    "torch.maximum": lambda m, a, b: torch.maximum(a, b),
    "torch.minimum": lambda m, a, b: torch.minimum(a, b),
    "add": lambda m, a, b: a.add(b),
    "add_": lambda m, a, b: (a * 1).add_(b),
    "sub": lambda m, a, b: a.sub(other=b),
    "mul": lambda m, a, b: a.mul(b),
    "div_": lambda m, a, b: (a * 1).div_(b + 9),
    "maximum": lambda m, a, b: a.maximum(b),
}


@pytest.mark.parametrize("name", TWO)
def test_two_maps(backend, name):
    check_operator(Call(TWO[name]), [A, A], threshold=0.1, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_and_itself(backend, dtype):
    check_operator(Call(lambda m, a: a * a + a), A, dtype=dtype, threshold=0.1, backend=backend)


GATES = {
    "map * gate": lambda m, a, g: a * g,
    "gate * map": lambda m, a, g: g * a,
    "map + gate": lambda m, a, g: a + g,
    "gate - map": lambda m, a, g: g - a,
    "map / gate": lambda m, a, g: a / (g.abs() + 1),
    "map *= gate": lambda m, a, g: operator.imul(a * 1, g),
}


@settings(max_examples=examples(12))
@given(
    name=st.sampled_from(sorted(GATES)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    wide=st.booleans(),
    batch=st.integers(1, 3),
)
def test_gates(backend, name, size, wide, batch):
    """A map of 1x1 beside a larger one, with all channels or one."""
    shapes = [(batch, 3, *size), (batch, 3 if wide else 1, 1, 1)]
    check_operator(Call(GATES[name]), shapes, threshold=0.1, backend=backend)


def test_one_channel_beside_many(backend):
    check_operator(Call(lambda m, a, b: a * b), [A, (2, 1, 5, 6)], threshold=0.1, backend=backend)


@pytest.mark.parametrize("size", [(5, 6), (40, 40)])
def test_one_channel_that_grows(backend, size):
    """What lies behind the convolution has more channels than it makes."""
    network = Call(lambda m, a: m.conv(a) + a, conv=nn.Conv2d(3, 1, 3, padding=1))
    check_operator(network, (2, 3, *size), dtype=torch.float32, threshold=0.1, backend=backend)


def test_gate_of_the_map_itself(backend):
    check_operator(
        Call(lambda m, a: a * a.mean((2, 3), keepdim=True).sigmoid()), A, threshold=0.1, backend=backend
    )


CONSTANTS = {
    "+ number": lambda m, a: a + 1,
    "number - map": lambda m, a: 1 - a,
    "map - number": lambda m, a: a - 0.5,
    "number / map": lambda m, a: 1 / (a.abs() + 1),
    "map / number": lambda m, a: a / 3,
    "number ** map": lambda m, a: 2.0**a,
    "map ** number": lambda m, a: a**2,
    "rsub": lambda m, a: torch.rsub(a, 2.5),
    "0-d": lambda m, a: a * m.scalar,
    "0-d first": lambda m, a: m.scalar - a,
    "per channel": lambda m, a: a * m.channels,
    "per channel first": lambda m, a: m.channels - a,
    "per channel, three dimensions": lambda m, a: a + m.channels[0],
    "per pixel": lambda m, a: a + m.pixels,
    "more channels": lambda m, a: a[:, :1] * m.channels,
    "1x1 to a map": lambda m, a: a.mean((2, 3), keepdim=True) * m.pixels,
    "maximum": lambda m, a: torch.maximum(a, m.channels),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(backend, name):
    parts = {
        "scalar": torch.tensor(1.5),
        "channels": torch.randn(1, 3, 1, 1),
        "pixels": torch.randn(1, 1, 5, 6),
    }
    check_operator(Call(CONSTANTS[name], **parts), A, threshold=0.1, backend=backend)


DENSE = {
    "alpha": (lambda m, a: torch.add(a, a, alpha=2), "alpha is not 1"),
    "rounding": (lambda m, a: torch.div(a, 2, rounding_mode="floor"), "rounding_mode='floor'"),
    "a row": (lambda m, a: a + m.row, "runs along the width"),
    "a stretched map": (lambda m, a: a + a[:, :, :1], "it stretches a map of 1x6 to 5x6"),
    "a stretched batch": (lambda m, a: a + a[:1].tanh(), "batch 1, the frame has 2"),
    "streams apart": (lambda m, a: a + m.streams, "differs from stream to stream"),
    "a truth value": (lambda m, a: a * True, "mul with bool"),
    "a number of the frame": (lambda m, a: a * a.mean(), "not N C H W"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, row=torch.randn(6), streams=torch.randn(2, 3, 1, 1))
    check_operator(module, A, backend=backend, expect="dense", reason=reason)
