"""ops/channels.py, with passes/open_tuples.py in front of it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, check_operator, scripted_video
from torch import nn

import deltaconvert

A = (2, 6, 4, 5)
JOINS = {
    "cat": lambda m, a, b: torch.cat([a, b], 1),
    "cat of a tuple": lambda m, a, b: torch.cat((a, b, a), dim=1),
    "cat from behind": lambda m, a, b: torch.cat([b, a], dim=-3),
    "concat": lambda m, a, b: torch.concat([a, b], axis=1),
    "concatenate": lambda m, a, b: torch.concatenate((a, b), 1),
    "cat of one": lambda m, a, b: torch.cat([a], 1) + b,
}


@pytest.mark.parametrize("name", JOINS)
def test_concat(backend, name):
    check_operator(Call(JOINS[name]), [A, A], threshold=0.1, backend=backend)


def test_concat_of_other_widths(backend):
    check_operator(
        Call(lambda m, a, b: torch.cat([a, b], 1)), [A, (2, 1, 4, 5)], dtype=torch.float32, backend=backend
    )


PARTS = {
    "slice": lambda m, x: x[:, 1:4],
    "from": lambda m, x: x[:, 2:],
    "until": lambda m, x: x[:, :-1],
    "steps": lambda m, x: x[:, ::2],
    "all dimensions": lambda m, x: x[:, 1:3, :, :],
    "dots": lambda m, x: x[:, 1:3, ...],
    "chunk": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1) if False else sum(x.chunk(2, 1)),
    "torch.chunk": lambda m, x: (lambda a, b: a * b)(*unpack(torch.chunk(x, 2, dim=1), 2)),
    "split and joined": lambda m, x: (lambda t: torch.cat(t, 1) * torch.cat([t[1], t[0]], 1))(x.split(3, 1)),
    "chunks that do not divide": lambda m, x: unpack(x.chunk(4, dim=-3), 3)[2],
    "split": lambda m, x: unpack(x.split(4, dim=1), 2)[1],
    "split by sizes": lambda m, x: unpack(torch.split(x, [1, 2, 3], 1), 3)[1],
    "split from behind": lambda m, x: x.split([1, 2, 3], 1)[-1],
    "a list": lambda m, x: x[:, [2, 0, 2, -1]],
    "a list and dots": lambda m, x: x[:, [5, 1], ...],
    "a tensor": lambda m, x: x[:, m.index],
    "index_select": lambda m, x: torch.index_select(x, 1, m.index),
    "its method": lambda m, x: x.index_select(dim=1, index=m.index),
    "flip": lambda m, x: torch.flip(x, [1]),
    "its method, of a slice": lambda m, x: x[:, 1:].flip(dims=(1,)),
    "channel_shuffle": lambda m, x: F.channel_shuffle(x, 3),
    "nn.ChannelShuffle": lambda m, x: m.shuffle(x),
}
PARTS["chunk"] = lambda m, x: x.chunk(2, 1)[0] - x.chunk(2, dim=1)[1]


def unpack(parts, count):
    return [parts[i] for i in range(count)]


@pytest.mark.parametrize("name", PARTS)
def test_parts(backend, name):
    module = Call(PARTS[name], index=torch.tensor([4, 0, 5]), shuffle=nn.ChannelShuffle(2))
    check_operator(module, A, threshold=0.1, backend=backend)


GATED = {
    "F.glu": lambda m, x: F.glu(x, dim=1),
    "nn.GLU": nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.GLU(-3)),
    "GEGLU": lambda m, x: (lambda halves: halves[0] * F.gelu(halves[1]))(x.chunk(2, 1)),
}


@pytest.mark.parametrize("name", GATED)
def test_gated_units(backend, name):
    call = GATED[name]
    check_operator(call if isinstance(call, nn.Module) else Call(call), A, threshold=0.1, backend=backend)


def test_slices_before_and_between_chunks(backend):
    """Each is a node called getitem in some stage, and none takes the place of another."""

    def run(m, x):
        y = F.channel_shuffle(torch.cat([x, x], 1), 2)[:, ::1].flip(1)
        return y.chunk(2, 1)[1].relu().chunk(2, 1)[1]

    check_operator(Call(run), A, backend=backend)


def test_parts_joined_again(backend):
    """ShuffleNet's unit: half goes through, half is worked on."""
    module = Call(lambda m, x: torch.cat([x.chunk(2, 1)[0], x.chunk(2, 1)[1].relu()], 1))
    check_operator(module, A, dtype=torch.float32, threshold=0.1, backend=backend)


JOINED_CONSTANTS = {
    "behind": lambda m, x: torch.cat(
        [x, torch.zeros(x.shape[0], 2, *x.shape[2:], dtype=x.dtype, device=x.device)], 1
    ),
    "before": lambda m, x: torch.cat([torch.ones_like(x[:, :1]), x, x.new_ones(x.shape)], -3),
    "between": lambda m, x: torch.cat([x, x.new_full((x.shape[0], 3, *x.shape[2:]), -0.5), x.relu()], 1),
    "at both ends": lambda m, x: torch.cat([torch.zeros_like(x), x, x.sigmoid(), torch.zeros_like(x)], 1),
    "rows": lambda m, x: torch.cat([torch.zeros(*x.shape[:2], 2, x.shape[3]).to(x), x], 2),
    "columns": lambda m, x: torch.cat([x, torch.ones(x.shape).to(x)], -1),
}


OF_SEVERAL_NUMBERS = {
    "coordinates": lambda m, x: torch.cat([x, _coordinates(x)], 1).relu(),
    "between": lambda m, x: torch.cat([_table(m, x), x, _coordinates(x), x * 2], 1),
    "zeros and ones": lambda m, x: torch.cat([torch.ones_like(x[:, :1]), x, torch.zeros_like(x)], 1),
    "zeros, ones beside the next": lambda m, x: torch.cat(
        [x, torch.zeros_like(x), x.abs(), torch.ones_like(x)], 1
    ),
    "rows": lambda m, x: torch.cat([x, torch.arange(x.shape[3]).to(x).expand(*x.shape[:2], 3, -1)], 2),
    "N H W C": lambda m, x: (
        torch.cat([t.permute(0, 2, 3, 1) for t in (x.relu(), _table(m, x))], 3).movedim(3, 1) * 2
    ),
    "minus zero": lambda m, x: torch.cat([x.relu() * -1, _table(m, x)], 1).reciprocal(),
}


def _table(m, x):
    return m.table.expand(x.shape[0], -1, -1, -1)


def _coordinates(x):
    """As CoordConv has them."""
    rows, cols = torch.arange(x.shape[2]).to(x), torch.linspace(-1, 1, x.shape[3]).to(x)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij")).expand(x.shape[0], -1, -1, -1)


@pytest.mark.parametrize("name", OF_SEVERAL_NUMBERS)
def test_joined_with_constants(backend, name):
    module = Call(OF_SEVERAL_NUMBERS[name], table=torch.randn(1, 3, *A[2:]))
    check_operator(module, A, threshold=0.1, backend=backend)


@pytest.mark.parametrize("name", JOINED_CONSTANTS)
def test_joined_with_a_number(backend, name):
    """A recurrent network's first state."""
    check_operator(Call(JOINED_CONSTANTS[name]), A, threshold=0.1, backend=backend)


def _zeros(t, dim, size):
    sizes = [size if at == dim else side for at, side in enumerate(t.shape)]
    return torch.zeros(sizes, dtype=t.dtype, device=t.device)


OTHERWISE_LAID_OUT = {
    "a token": lambda m, t: torch.cat([_zeros(t, 1, 1), t], 1)[:, 1:],
    "channels of tokens": lambda m, t: torch.cat([t, _zeros(t, 2, 2)], -1),
    "channels of N C": lambda m, t: torch.cat([_zeros(t.mean(1), 1, 2), t.mean(1)], 1)[..., None] * t.mean(),
    "five dimensions": lambda m, t: torch.cat([t[:, None, None], _zeros(t[:, None, None], 2, 2)], 2)[:, 0],
    "the second of five": lambda m, t: torch.cat([t[:, None, None], _zeros(t[:, None, None], 1, 2)], 1)[:, 0],
    "streams": lambda m, t: torch.cat([t, _zeros(t, 0, 3)])[:2],
}


@pytest.mark.parametrize("name", OTHERWISE_LAID_OUT)
def test_joined_with_a_number_in_other_layouts(backend, name):
    """Padding is of the last dimensions there are."""
    network = Call(lambda m, x: OTHERWISE_LAID_OUT[name](m, x.relu().flatten(2).transpose(1, 2)) * 2)
    video = scripted_video(A)[:5]
    model = deltaconvert.convert(network.eval(), video[0], backend=backend)
    for frame in video:
        assert_close(model(frame), network(frame))


SHUFFLED = {
    "index": lambda m, x: m.halves(x)[0] + m.halves(x)[1],
    "select": lambda m, x: m.halves(x).select(0, 1).relu(),
    "select of the last": lambda m, x: torch.select(m.halves(x), 0, -1) * 2,
    "index_select": lambda m, x: m.halves(x).index_select(0, m.second).squeeze(0).relu(),
    "a group": lambda m, x: x.reshape(2, 3, 2, 4, 5)[:, 1].relu(),
}


class Halves(Call):
    def halves(self, x):
        """ShuffleNet as it is exported: the even channels, then the odd ones."""
        n, c, h, w = x.shape
        return x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, n, c // 2, h, w)


@pytest.mark.parametrize("name", SHUFFLED)
def test_places_of_a_shuffle(backend, name):
    module = Halves(SHUFFLED[name], second=torch.tensor([1]))
    check_operator(module, A, threshold=0.1, backend=backend)


def test_an_activation_behind_a_slice_leaves_the_map_alone(backend):
    """Both are one node; what it cuts out is memory of the map, which others read too."""
    module = Call(lambda m, x: (x[:, :2].relu(), x * 1))
    check_operator(module, (1, 3, 48, 48), dtype=torch.float32, backend=backend)


DENSE = {
    "cat along the width": (lambda m, x: torch.cat([x, x], 3), "along dimension 3"),
    "cat along the batch": (lambda m, x: torch.cat([x, x]), "its output has batch 4"),
    "cat with a constant": (lambda m, x: torch.cat([x, m.map], 1), "from stream to stream"),
    "cat of matrices": (lambda m, x: torch.cat([x.flatten(2), x.flatten(2)], 1), "not N C H W"),
    "cat of three dimensions": (lambda m, x: torch.cat([x.flatten(2), x.flatten(2)], -3), "not N C H W"),
    "one channel": (lambda m, x: x[:, 1], "something else than a slice"),
    "chosen values": (lambda m, x: x[:, m.six], "something else than a slice or a list"),
    "chosen rows": (lambda m, x: x.index_select(2, m.index), "takes parts of dimension 2"),
    "channels that are computed": (lambda m, x: x[:, x[0, :3, 0, 0].argsort()], "its index is computed"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(
        Call(function, map=torch.randn(2, 1, 4, 5), index=torch.tensor([2, 0]), six=torch.arange(6) % 2 > 0),
        A,
        backend=backend,
        expect="dense",
        reason=reason,
    )
