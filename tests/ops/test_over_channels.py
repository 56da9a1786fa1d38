"""ops/over_channels.py, with passes/keep_channels.py and passes/open_tuples.py in front of it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator, dense, same_bits, scripted_video
from torch import nn

import deltaconvert

A = (2, 5, 4, 7)
CALLS = {
    "nn.Softmax": nn.Softmax(1),
    "nn.Softmax2d": nn.Softmax2d(),
    "nn.LogSoftmax": nn.LogSoftmax(-3),
    "F.softmax": lambda m, x: F.softmax(x, dim=1),
    "torch.softmax in double": lambda m, x: torch.softmax(x, 1, torch.float64),
    "softmax": lambda m, x: x.softmax(-3),
    "F.log_softmax": lambda m, x: F.log_softmax(x, 1),
    "log_softmax": lambda m, x: x.log_softmax(dim=1, dtype=torch.float64),
    "F.normalize": lambda m, x: F.normalize(x),
    "F.normalize by sums": lambda m, x: F.normalize(x, p=1, dim=1, eps=1e-6),
    "argmax": lambda m, x: x.argmax(1, keepdim=True),
    "torch.argmin": lambda m, x: torch.argmin(x, dim=-3, keepdim=True),
    "max, values": lambda m, x: torch.max(x, 1, keepdim=True)[0],
    "max, places": lambda m, x: x.max(1, True)[1],
    "max, both": lambda m, x: unpack(x.max(dim=1, keepdim=True)),
    "min, by name": lambda m, x: x.min(1, keepdim=True).values + x.min(1, keepdim=True).indices,
    "amax": lambda m, x: x.amax((1,), keepdim=True) - torch.amin(x, 1, True),
    "mean": lambda m, x: torch.cat([x.mean(1, keepdim=True), torch.amax(x, 1, keepdim=True)], 1),
    "mean, a list": lambda m, x: torch.mean(x, [1], True),
    "sum": lambda m, x: x - x.sum(dim=1, keepdim=True),
    "torch.sum axis": lambda m, x: torch.sum(x, axis=1, keepdim=True),
    "var": lambda m, x: torch.var(x, 1, unbiased=False, keepdim=True),
    "std": lambda m, x: x.std(1, correction=0, keepdim=True),
    "norm": lambda m, x: x / x.norm(dim=1, keepdim=True),
    "torch.norm by sums": lambda m, x: torch.norm(x, 1, 1, True),
    "torch.norm p": lambda m, x: torch.norm(x, p=2, dim=1, keepdim=True),
    "vector_norm": lambda m, x: torch.linalg.vector_norm(x, 3, 1, True),
    "linalg.norm": lambda m, x: torch.linalg.norm(x, dim=1, keepdim=True),
}


def unpack(pair):
    values, places = pair
    return values * places


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_spellings(backend, name, dtype):
    call = CALLS[name]
    check_operator(call if isinstance(call, nn.Module) else Call(call), A, dtype=dtype, backend=backend)


@pytest.mark.parametrize("channels", [1, 3, 19, 150])
@pytest.mark.parametrize("name", ["F.softmax", "F.normalize", "mean", "std", "argmax"])
def test_many_pixels(backend, name, channels):
    """Enough of them that the cpu backend takes its dense way and chunks of several sizes."""
    if name != "std" or channels > 1:
        check_operator(Call(CALLS[name]), (1, channels, 37, 33), dtype=torch.float32, backend=backend)


def test_within_a_threshold(backend):
    check_operator(nn.Softmax(1), A, threshold=0.1, backend=backend)
    check_operator(Call(lambda m, x: x.mean(1, keepdim=True)), (1, 3, 1, 1), threshold=0.1, backend=backend)


SQUEEZED = {
    "argmax": lambda m, x: m.conv(x).argmax(1),
    "max": lambda m, x: m.conv(x).max(1)[1],
    "torch.max both": lambda m, x: unpack(torch.max(m.conv(x), 1)),
    "mean": lambda m, x: torch.mean(m.conv(x), 1),
    "norm": lambda m, x: m.conv(x).norm(2, 1),
    "sum": lambda m, x: m.conv(x).sum(-3),
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_without_channels(backend, name):
    """The reduction is a delta node; what follows it is dense."""
    module = Call(SQUEEZED[name], conv=nn.Conv2d(3, 6, 3, padding=1))
    check_operator(module, (2, 3, 5, 6), backend=backend, expect="dense")
    model = deltaconvert.convert(module, torch.randn(2, 3, 5, 6).double(), backend=backend)
    delta = [row.operator for row in model.explain().rows if row.kind == "delta"]
    assert any(name in operator for operator in delta for name in ("arg", "amax", "mean", "norm", "sum")), (
        delta
    )


def test_labels_travel_on(backend):
    """A segmentation map as a mask for another one, as a number, and through a file."""
    module = Call(lambda m, x: (x * (x.argmax(1, keepdim=True) - 1), x.argmax(1, keepdim=True)))
    check_operator(module, A, backend=backend)
    check_operator(module, (1, 5, 40, 40), dtype=torch.float32, backend=backend)


def test_labels_in_a_file(tmp_path, backend):
    module = Call(lambda m, x: x.argmax(1)).eval()
    video = scripted_video((1, 4, 6, 5), torch.float32)
    deltaconvert.convert(module, video[0], backend=backend, threshold=0.1).save(tmp_path / "labels.delta")
    model = deltaconvert.load(tmp_path / "labels.delta", backend=backend, device=torch.get_default_device())
    for frame in video[:3]:
        assert same_bits(model(frame), dense(module, [frame]))
    assert any("argmax" in layer.operator for layer in model.stats().layers)


DENSE = {
    "softmax over the width": (lambda m, x: x.softmax(3), "along dimension 3, not along the channels"),
    "argmax of all": (lambda m, x: x.argmax(), "not go along the channels"),
    "sum over two": (lambda m, x: x.sum((1, 2), keepdim=True), "along dimensions 1, 2"),
    "argmax of vectors": (lambda m, x: x.mean((2, 3)).argmax(1), "no channels"),
    "max whole": (lambda m, x: x.max(), "no maximum or minimum of two maps"),
    "dense labels": (lambda m, x: x.argmax(3, keepdim=True) + 1, "not compared"),
    "nuclear norm": (lambda m, x: torch.norm(x.flatten(2), "nuc", (1, 2)), "its order is 'nuc'"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), A, backend=backend, expect="dense", reason=reason)
