"""ops/arithmetic.py"""

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Call, check_operator, examples
from torch import nn

import deltaconvert

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
    "torch.max": lambda m, a, b: torch.max(a, b) - torch.min(a, other=b),
    "add alpha": lambda m, a, b: torch.add(a, b, alpha=2),
    "sub alpha": lambda m, a, b: a.sub(b, alpha=0.5),
    "rsub alpha": lambda m, a, b: torch.rsub(a, b, alpha=3),
    "//": lambda m, a, b: a // (b.abs() + 0.5),
    "div floor": lambda m, a, b: torch.div(a, b.abs() + 0.5, rounding_mode="floor"),
    "div trunc": lambda m, a, b: a.div(b.abs() + 0.5, rounding_mode="trunc"),
    "%": lambda m, a, b: a % (b.abs() + 0.5),
    "fmod": lambda m, a, b: torch.fmod(a, b.abs() + 0.5),
    "lerp": lambda m, a, b: torch.lerp(a, b, 0.25) + a.lerp(b, b),
    "addcmul": lambda m, a, b: torch.addcmul(a, a, b) - b.addcdiv(a, b.abs() + 1),
    "where": lambda m, a, b: torch.where(a > b, a, b * 2),
    "where, a number": lambda m, a, b: torch.where(a.lt(b), 0.0, b),
    "where, a method": lambda m, a, b: a.where(b >= 0.5, b),
    "masked_fill": lambda m, a, b: a.masked_fill(b <= 0, -9.0),
    "masked_fill_": lambda m, a, b: (a * 1).masked_fill_(b == a, 1.0),
    "truth values": lambda m, a, b: ((a > 0) & (b < 1)) | (a != b),
    "logic": lambda m, a, b: torch.logical_xor(torch.logical_or(a > 0, b > 0), a.gt(1).logical_and(b > 1)),
    "a truth value as a number": lambda m, a, b: (a > b) * a + (b > 0),
    "labels": lambda m, a, b: (
        (a.argmax(1, keepdim=True) == b.argmax(1, keepdim=True)) * (a.argmax(1, True) // 2)
    ),
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


STRETCHED = {
    "a row": lambda m, a, b: a * b,
    "a column first": lambda m, a, b: b - a,
    "behind a convolution": lambda m, a, b: m.conv(a).relu() * b.sigmoid() + a,
    "in the tail": lambda m, a, b: (m.conv(a) + b).relu(),
    "raised": lambda m, a, b: (a.abs() + 1) ** b,
}


@pytest.mark.parametrize("shape", [(2, 3, 5, 1), (2, 1, 1, 6)])
@pytest.mark.parametrize("name", STRETCHED)
def test_rows_and_columns(backend, name, shape):
    network = Call(STRETCHED[name], conv=nn.Conv2d(3, 3, 3, padding=1))
    check_operator(network, [A, shape], threshold=0.1, backend=backend)


def test_a_column_times_a_row(backend):
    """Coordinate attention."""
    network = Call(lambda m, a, b, x: x * (a.sigmoid() * b.sigmoid()) + a * b)
    check_operator(
        network, [(2, 3, 33, 1), (2, 3, 1, 40), (2, 3, 33, 40)], dtype=torch.float32, backend=backend
    )


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
    "0-d as an exponent": lambda m, a: (a.abs() + 1) ** m.scalar,
    "per channel as an exponent": lambda m, a: (a.abs() + 1) ** m.channels,
    "a whole number": lambda m, a: a * torch.tensor(2) + m.whole,
    "labels and 0-d": lambda m, a: a.argmax(1, keepdim=True) * m.scalar,
    "labels and 0-d of theirs": lambda m, a: a.argmax(1, keepdim=True) * m.whole,
    "a truth value": lambda m, a: a * True,
    "one value": lambda m, a: a + m.scalar.view(1),
    "a row": lambda m, a: a + m.pixels[0, 0, 0],
    "height and width": lambda m, a: a * m.pixels[0, 0],
    "all": lambda m, a: (m.channels * m.pixels)[0] - a,
    "a column": lambda m, a: a + m.pixels[:, :, :, :1],
    "alpha": lambda m, a: torch.add(a, m.channels, alpha=2) - torch.sub(a, 3, alpha=2),
    "//": lambda m, a: a // 0.75 + 2 // (a.abs() + 0.5),
    "%": lambda m, a: a % 0.75 + 2.5 % (a.abs() + 0.5),
    "map ** part": lambda m, a: (a.abs() + 1) ** 1.7,
    "where": lambda m, a: torch.where(a > m.channels, a, m.pixels),
    "where, a constant choice": lambda m, a: torch.where(m.pixels > 0, a, -a),
    "masked_fill": lambda m, a: a.masked_fill(m.pixels > 0, m.scalar),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(backend, name):
    parts = {
        "scalar": torch.tensor(1.5),
        "channels": torch.randn(1, 3, 1, 1),
        "pixels": torch.randn(1, 1, 5, 6),
        "whole": torch.tensor(3),
    }
    check_operator(Call(CONSTANTS[name], **parts), A, threshold=0.1, backend=backend)


DENSE = {
    "a stretched batch": (lambda m, a: a + a[:1].tanh(), "batch 1, the frame has 2"),
    "streams apart": (lambda m, a: a + m.streams, "differs from stream to stream"),
    "a number of the frame": (lambda m, a: a * a.mean(), "not N C H W"),
    "a weighted product": (lambda m, a: torch.addcmul(a, a, a, value=2), "value=2"),
    "a place": (lambda m, a: torch.where(a > 0)[0], "where with NoneType"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, streams=torch.randn(2, 3, 1, 1))
    check_operator(module, A, backend=backend, expect="dense", reason=reason)


TYPES = {
    "div trunc": lambda m, a, b: torch.div(a, b, rounding_mode="trunc"),
    "div trunc of large numbers": lambda m, a, b: torch.div(a * 2**40 + 1, b, rounding_mode="trunc"),
    "alpha of a truth value": lambda m, a, b: torch.add(a, b > 3, alpha=2),
    "masked_fill": lambda m, a, b: (a > 0).masked_fill(b > 3, 0),
    "y[mask] =": lambda m, a, b: m.set(a > 0, b > 3),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_go_by_the_maps(backend, name):
    """What numbers stand beside them does not change them: integers stay integers."""

    def set_zero(x, mask):
        x[mask] = 0
        return x

    network = Call(TYPES[name], set=set_zero).eval()
    a, b = torch.randint(-9, 9, A), torch.randint(1, 9, A)
    model = deltaconvert.convert(network, (a, b), backend=backend)
    for frames in ((a, b), (a, b.flip(3)), (-a, b.flip(3))):
        ours, theirs = model(*frames), network(*frames)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
