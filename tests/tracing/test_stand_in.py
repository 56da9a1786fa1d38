"""tracing/stand_in.py: networks that ask what a value is, or make one of sizes, are one graph for all sizes."""

from __future__ import annotations

import builtins
import numbers

import pytest
import torch
from oracle import Call, assert_close, assert_same_bits, scripted_video
from torch import Tensor, nn

import deltaconvert

SHAPE = (2, 3, 13, 11)
_ISINSTANCE = isinstance


def _asserts(m, x):
    assert isinstance(x, Tensor) and torch.is_tensor(x) and not isinstance(x, list | tuple)
    _, _, *size = x.shape
    assert isinstance(x.shape, tuple) and isinstance(size[0], int) and not isinstance(size[0], Tensor)
    return m.first(x)


NETWORKS = {
    "isinstance": _asserts,
    "of kinds": lambda m, x: _of_kinds(m, x),
    "in a branch": lambda m, x: m.first(x) if isinstance(x, Tensor) else m.first(x[0]),
    "of a part": lambda m, x: (lambda y: y if isinstance(y, Tensor) else y[0])(m.first(x)),
    "zeros": lambda m, x: (
        torch.zeros(x.shape[0], 4, *x.shape[2:], dtype=x.dtype, device=x.device) + m.first(x)
    ),
    "ones": lambda m, x: m.first(x) * torch.ones(x.size(0), 1, x.size(2), 1, dtype=x.dtype, device=x.device),
    "empty": lambda m, x: torch.empty(x.shape[0], 4, *x.shape[2:]).to(x).fill_(2) * m.first(x),
    "new_empty": lambda m, x: x.new_empty(x.shape[0], 4, *x.shape[2:]).fill_(1) - m.first(x),
    "empty_like": lambda m, x: (
        torch.empty_like(m.first(x), memory_format=torch.preserve_format).zero_() + m.first(x)
    ),
    "expand": lambda m, x: m.weight.expand(x.shape[0], -1, *x.shape[2:]) + m.first(x),
    "repeat": lambda m, x: m.weight.repeat(x.shape[0], 1, x.shape[2], x.shape[3]) * m.first(x),
    # torch looks for numbers first, and would take a stand-in that says it is a tensor for the memory of one
    "pow of a tensor": lambda m, x: torch.pow(m.first(x), 2) + torch.remainder(m.first(x), 0.5),
    "where of a tensor": lambda m, x: (lambda y: torch.where(y > 0, y, 0.0))(m.first(x)),
    "asked and pow": lambda m, x: torch.pow(m.first(x) if isinstance(x[0], Tensor) else x[0], 2),
    "asked often": lambda m, x: m.first(x * sum(_is_tensor(x, place) for place in range(50)) / 50),
    "torch.jit.isinstance": lambda m, x: m.first(x) if torch.jit.isinstance(x, Tensor) else m.first(x[0]),
    "finfo": lambda m, x: (lambda y: y.masked_fill(y < 0, torch.finfo(y.dtype).min).softmax(1))(m.first(x)),
    "finfo of a cast": lambda m, x: m.first(x).clamp(max=torch.finfo(x.half().dtype).smallest_normal),
    "iinfo": lambda m, x: m.first(x) / torch.iinfo(m.first(x).argmax(1).dtype).bits,
    "promote_types": lambda m, x: m.first(x).to(torch.promote_types(x.dtype, torch.float16)),
    "item of a weight": lambda m, x: m.first(x) * m.first.bias[0].item(),
    "tensor": lambda m, x: m.first(x) / torch.tensor([x.shape[2], x.shape[3]]).to(x).prod(),
    "new_tensor": lambda m, x: m.first(x - x.new_tensor([0.1, 0.2, 0.3])[:, None, None]),
    "as_tensor": lambda m, x: m.first(x) * torch.as_tensor(x.shape[3] / x.shape[2], dtype=x.dtype).to(x),
    "Size": lambda m, x: m.first(x).reshape(torch.Size((x.shape[0], 2, 2, *x.shape[2:]))).flatten(1, 2),
    "numel of a Size": lambda m, x: m.first(x) / torch.Size([x.shape[2], x.shape[3]]).numel(),
    "a buffer that is cast": lambda m, x: _cast_in_forward(m, "weight", x),
    "a tensor that is cast": lambda m, x: _cast_in_forward(m, "plain", x),
    "a buffer that is written": lambda m, x: _written_in_forward(m, x),
}


def _cast_in_forward(m, name, x):
    """As EDSR does with the mean of its colours."""
    setattr(m, name, getattr(m, name).type_as(x))
    return m.first(x) * getattr(m, name)


def _written_in_forward(m, x):
    before = m.weight
    m.weight = m.first(x) * m.weight
    m.weight = m.weight + before
    y, m.weight = m.weight, m.same
    return y * m.same


def _is_tensor(x, place):
    """Python runs what runs often in another way."""
    assert torch.pow(x, 2) is not x and not isinstance(x.shape[2] if place else place, Tensor)
    return isinstance(x[:2], (torch.Tensor, nn.Parameter)) and x.__class__ is Tensor


def _of_kinds(m, x):
    assert isinstance(m.first.weight, nn.Parameter) and not isinstance(x, nn.Parameter | nn.Buffer)
    assert isinstance(x.shape, torch.Size) and isinstance(x.shape, torch.Size | int)
    assert (
        isinstance(torch.Size((x.shape[0], 4)), tuple)
        and torch.Size((2, 4)).numel() == 8
        and isinstance(x.shape[0], numbers.Integral)
    )
    assert torch.jit.isinstance([x], list[Tensor]) and not torch.jit.isinstance([x.shape[0]], list[Tensor])
    assert isinstance(x.dtype, torch.dtype) and isinstance(x.device, torch.device)
    return m.first(x)


def _network(forward):
    torch.manual_seed(0)
    parts = {
        "first": nn.Conv2d(3, 4, 3, padding=1),
        "last": nn.Conv2d(4, 2, 3),
        "weight": torch.rand(1, 4, 1, 1),
    }
    network = Call(lambda m, x: m.last(forward(m, x).relu()), **parts).eval()
    network.plain = torch.rand(1, 4, 1, 1)
    network.register_buffer("same", network.weight)
    return network.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph_for_all_sizes(backend, name, tmp_path):
    dense = _network(NETWORKS[name])
    model = deltaconvert.convert(dense, scripted_video(SHAPE)[0], backend=backend)
    assert model.info["capture"] == "traced symbolically" and not model.explain().islands
    model.save(tmp_path / "net.delta")
    again = deltaconvert.load(tmp_path / "net.delta", backend=backend, device=model.device)
    for shape in (SHAPE, (1, 3, 9, 14)):
        for frame in scripted_video(shape)[:5]:
            with torch.no_grad():
                assert_close(model(frame), dense(frame))
            assert_same_bits(again(frame), model(frame), "from the file")


@pytest.mark.parametrize("name", ["weight", "plain"])
def test_what_forward_assigns_stays_out_of_the_network(name):
    network = _network(lambda m, x: _cast_in_forward(m, name, x))
    before = getattr(network, name)
    deltaconvert.convert(network, torch.rand(SHAPE).double(), backend="reference")
    assert getattr(network, name) is before and "plain" in vars(network)


def test_what_forward_assigns_to_an_operator_is_seen():
    """Dark frames, as the example, leave the norm as it is."""

    def forward(m, x):
        y = m.first(x)
        m.norm.running_mean = (y.mean((0, 2, 3)) * (x.mean() > 1)).detach()
        return m.norm(y)

    network = _network(forward)
    network.norm = nn.BatchNorm2d(4).double().eval()
    frame = torch.rand(SHAPE).double()
    model = deltaconvert.convert(network, frame, backend="reference")
    for lit in (frame, 10 * frame):
        with torch.no_grad():
            assert_close(model(lit), network(lit))


@pytest.mark.parametrize("raises", [False, True])
def test_python_and_torch_are_as_they_were(raises):
    def forward(m, x):
        assert isinstance(x, Tensor) and x.dim() == 4
        if raises:
            raise ValueError("no network")
        return m.first(x)

    names = (
        (torch, "zeros"),
        (torch, "tensor"),
        (torch, "finfo"),
        (torch, "Size"),
        (Tensor, "expand"),
        (Tensor, "view"),
        (nn.Module, "__setattr__"),
    )
    before = [vars(home).get(name) for home, name in names]
    try:
        deltaconvert.convert(_network(forward), torch.rand(SHAPE).double(), backend="reference")
    except deltaconvert.DeltaConvertError:
        assert raises
    assert [vars(home).get(name) for home, name in names] == before


def test_isinstance_is_pythons_own_all_the_time():
    """Other threads run on while a network is traced."""
    seen = []

    def forward(m, x):
        seen.append(isinstance(x, Tensor) and type(x) is not Tensor and builtins.isinstance is isinstance)
        seen.append(isinstance is _ISINSTANCE)
        return m.first(x)

    deltaconvert.convert(_network(forward), torch.rand(SHAPE).double(), backend="reference")
    assert all(seen[1::2]) and any(seen[::2])
