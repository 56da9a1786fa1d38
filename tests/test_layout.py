"""layout.py: a chain of reshapes and permutes becomes one layout, and leads back to the map."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import examples

from deltaconvert.layout import Atom, Layout

SIZE = (2, 6, 4, 1)


def shapes_of(count):
    """All ways to write `count` as a product of up to four lengths, including lengths of one."""
    if count == 1:
        return st.sampled_from([(1,), (1, 1)])
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return st.lists(st.sampled_from(divisors), min_size=1, max_size=4).map(
        lambda parts: (*parts, count // math.prod(parts)) if count % math.prod(parts) == 0 else (count,)
    )


@settings(max_examples=examples(60))
@given(data=st.data(), size=st.tuples(*[st.integers(1, 6)] * 4))
def test_a_chain_is_one_layout(data, size):
    """The layout describes what torch makes of the map, and leads back to the map."""
    value = own = torch.arange(math.prod(size)).view(size)
    layout = Layout.of(size)
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            shape = data.draw(shapes_of(value.numel()))
            found = layout.reshape(shape)
            if found is None:
                continue
            value, layout = value.reshape(shape), found
        else:
            order = data.draw(st.permutations(range(value.dim())))
            value, layout = value.permute(order), layout.permute(order)
        assert layout.shape == tuple(value.shape)
        assert torch.equal(layout.lay(own), value)
        assert torch.equal(layout.map_of(value), own)
        assert layout.is_plain == (value.shape == own.shape and torch.equal(value, own))


def test_reshape_says_no():
    assert Layout.of((1, 6, 2, 2)).permute((0, 2, 3, 1)).reshape((1, 2, 3, 4)) is None, "3 of 2 x 6 places"


def test_what_follows_one_another_is_one_atom():
    tokens = Layout.of(SIZE).reshape((2, 2, 3, 4)).permute((0, 3, 1, 2)).reshape((2, 4, 6))
    assert tokens == Layout.of(SIZE).permute((0, 2, 3, 1)).reshape((2, 4, 6))
    assert tokens.dims == ((Atom(0, 1, 2),), (Atom(2, 1, 4),), (Atom(1, 1, 6),))
    assert tokens.in_order(tokens.dims[2], 1) and tokens.holds(tokens.dims[2], (1, 3))
    assert not tokens.holds(tokens.dims[1], (1, 2)) and not tokens.in_order(tokens.dims[1], 3)


@settings(max_examples=examples(60))
@given(data=st.data())
def test_a_place_of_channels(data):
    """What an index takes of a tensor are the channels that `select` lists, in the layout that it gives."""
    size = (2, 12, 2, 3)
    own, layout = torch.arange(math.prod(size)).view(size), Layout.of(size)
    factors = data.draw(st.sampled_from([(12,), (2, 6), (3, 4), (2, 3, 2)]))
    split = (2, *factors, 2, 3)
    order = data.draw(st.permutations(range(len(split))))
    value, layout = own.reshape(split).permute(order), layout.reshape(split).permute(order)
    dim = data.draw(st.integers(0, len(split) - 1))
    index = data.draw(st.integers(-value.shape[dim], value.shape[dim] - 1))
    found = layout.select(dim, index)
    if 1 <= order[dim] <= len(factors):
        channels, taken = found
        assert torch.equal(taken.lay(own[:, channels]), value.select(dim, index).unsqueeze(dim))
    else:
        assert found is None
    start, stop, step = (
        data.draw(st.integers(0, 6)),
        data.draw(st.integers(1, 12)),
        data.draw(st.integers(1, 4)),
    )
    places = range(value.shape[dim])[start:stop:step]
    found = layout.narrow(dim, places) if places else None
    if places and 1 <= order[dim] <= len(factors):
        channels, taken = found
        part = value.transpose(0, dim)[start:stop:step].transpose(0, dim)
        assert torch.equal(taken.lay(own[:, channels]), part)
    else:
        assert found is None


def test_spread_out():
    """A constant in a layout is spread over the map without becoming larger."""
    layout = Layout.of((2, 6, 4, 5)).permute((0, 2, 3, 1))
    assert layout.spread_out(torch.randn(6)).shape == (1, 6, 1, 1)
    tokens = layout.reshape((2, 20, 6))
    place = torch.randn(1, 20, 6)
    assert tokens.spread_out(torch.randn(6)).shape == (1, 6, 1, 1)
    assert torch.equal(tokens.spread_out(place), place.mT.reshape(1, 6, 4, 5))
    assert tokens.spread_out(torch.randn(3, 2, 20, 6)) is None and tokens.spread_out(torch.randn(5)) is None


def test_broadcasts_to():
    layout = Layout.of((2, 6, 4, 5))
    gate = Layout.of((2, 6, 1, 1))
    last = (0, 2, 3, 1)
    assert gate.broadcasts_to(layout) and gate.permute(last).broadcasts_to(layout.permute(last))
    assert not gate.broadcasts_to(layout.permute(last)) and not layout.broadcasts_to(gate)
    assert not layout.permute(last).broadcasts_to(layout)
