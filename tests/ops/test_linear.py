"""ops/linear.py, with passes/follow_layouts.py in front of it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, check_operator, dense, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.nodes import operator_of

A = (2, 6, 4, 5)


def back(x):
    """N C -> N C 1 1, so that the network ends in a delta node."""
    return x[:, :, None, None]


def gated(m, wide):
    """N H W 8 -> N H W 6: two channels scaled by two others, beside four that are convolved."""
    scale, kept, mixed = torch.split(wide, [2, 2, 4], dim=-1)
    mixed = m.conv(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return torch.cat([scale * kept, mixed], dim=-1)


ON_CHANNELS = {
    "N H W C": lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "two transposes": lambda m, x: m.linear(x.transpose(1, 2).transpose(2, 3)).movedim(-1, 1),
    "tokens": lambda m, x: m.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 5, 4, 5),
    "tokens of all streams": lambda m, x: (
        m.linear(x.permute(0, 2, 3, 1).reshape(-1, 6)).view(2, 4, 5, 5).permute(0, 3, 1, 2)
    ),
    "tokens in windows": lambda m, x: (
        m.linear(x.view(2, 6, 2, 2, 5, 1).permute(0, 2, 4, 3, 5, 1).reshape(20, 2, 6))
        .view(2, 2, 5, 2, 1, 5)
        .permute(0, 5, 1, 3, 2, 4)
        .reshape(2, 5, 4, 5)
    ),
    "functions": lambda m, x: torch.movedim(
        F.linear(torch.permute(x, (0, 2, 3, 1)), m.linear.weight, m.linear.bias), 3, 1
    ),
    "channels in another order": lambda m, x: m.linear(
        x.view(2, 2, 3, 4, 5).permute(0, 3, 4, 2, 1).flatten(3)
    ).permute(0, 3, 1, 2),
    "a matrix": lambda m, x: (x.permute(0, 2, 3, 1) @ m.linear.weight.t() + m.linear.bias).permute(
        0, 3, 1, 2
    ),
    "einsum": lambda m, x: torch.einsum("bhwc,oc->bhwo", x.permute(0, 2, 3, 1), m.linear.weight).permute(
        0, 3, 1, 2
    ),
    "tensordot": lambda m, x: torch.tensordot(x.permute(0, 2, 3, 1), m.linear.weight.t(), 1).movedim(3, 1),
    "tensordot by places": lambda m, x: torch.tensordot(
        x.permute(0, 2, 3, 1), m.linear.weight, dims=([3], [-1])
    ).movedim(3, 1),
    "einsum of a map": lambda m, x: torch.einsum("bchw, oc -> bohw", x, m.linear.weight),
    "einsum, weights first": lambda m, x: torch.einsum("co,bchw->bohw", m.linear.weight.t(), [x][0]),
    "a gated block": lambda m, x: m.linear(gated(m, m.wide(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
    "an MLP with a residual": lambda m, x: (
        lambda t: (t + m.out(F.gelu(m.linear(t)))).permute(0, 3, 1, 2) + x
    )(x.permute(0, 2, 3, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ON_CHANNELS)
def test_on_channels(backend, name, dtype):
    module = Call(ON_CHANNELS[name], linear=nn.Linear(6, 5), out=nn.Linear(5, 6, bias=False))
    module.wide, module.conv = nn.Linear(6, 8), nn.Conv2d(4, 4, 3, padding=1)
    check_operator(module, A, dtype=dtype, threshold=0.1, backend=backend)


HEADS = {
    "flatten": lambda m, x: back(m.whole(x.flatten(1))),
    "view": lambda m, x: back(m.whole(x.view(x.size(0), -1))),
    "a product": lambda m, x: back(x.flatten(1) @ m.whole.weight.t() + m.whole.bias),
    "addmm": lambda m, x: back(torch.addmm(m.whole.bias, x.flatten(1), m.whole.weight.t())),
    "of N H W C": lambda m, x: back(m.whole(x.permute(0, 2, 3, 1).reshape(2, -1))),
    "pooled": lambda m, x: back(m.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))),
    "pooled and squeezed": lambda m, x: m.linear(x.mean((2, 3), True).squeeze(-1).squeeze(-1)).view(
        2, 5, 1, 1
    ),
    "pooled and indexed": lambda m, x: m.linear(x.mean((2, 3), True)[..., 0, 0]).view(2, 5, 1, 1),
    "means": lambda m, x: back(m.linear(x.mean((2, 3)))),
    "means of tokens": lambda m, x: back(m.linear(x.permute(0, 2, 3, 1).mean([1, -2]))),
    "a norm in between": lambda m, x: back(m.out(m.norm(m.linear(x.mean((-1, -2)))).relu())),
    "layers": lambda m, x: back(m.out(F.dropout(F.relu(m.whole(x.flatten(1))), training=False)).sigmoid()),
    "a gate": lambda m, x: x * m.gate(F.adaptive_avg_pool2d(x, 1).view(2, 6)).sigmoid().view(2, 6, 1, 1),
    "a gate, expanded": lambda m, x: x * m.gate(x.mean((2, 3))).sigmoid().view(2, 6, 1, 1).expand_as(x),
    "expanded by hand": lambda m, x: m.gate(x.mean((2, 3)))[:, :, None, None].expand(-1, -1, 4, 5) * x,
    "a gate in N H W C": lambda m, x: (
        lambda t: (t * m.gate(F.adaptive_avg_pool2d(x, 1).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    )(m.gate(x.permute(0, 2, 3, 1))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", HEADS)
def test_heads(backend, name, dtype):
    parts = {
        "linear": nn.Linear(6, 5),
        "out": nn.Linear(5, 3),
        "gate": nn.Linear(6, 6),
        "norm": nn.BatchNorm1d(5),
    }
    module = Call(HEADS[name], whole=nn.Linear(6 * 4 * 5, 5), **parts)
    check_operator(module, A, dtype=dtype, threshold=0.1, backend=backend)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d((3, 2))
        self.classifier = nn.Sequential(
            nn.Linear(8 * 3 * 2, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def test_a_classifier_is_delta_to_its_end(backend):
    network, video = VGG().eval(), scripted_video((2, 3, 13, 11), torch.float32)
    model = deltaconvert.convert(network, video[0], backend=backend)
    assert model.explain().delta_share == 1.0
    assert [row.path for row in model.explain().islands] == ["rearrange(classifier.5)"]
    assert {"classifier.0", "classifier.1", "classifier.3"} <= set(model.names)
    for frame in video:
        assert_close(model(frame), dense(network, [frame]))


def test_weights_are_not_copied():
    """A head of VGG weighs 400 MB: what stands on the map is a view of what the graph holds."""
    model = deltaconvert.convert(VGG().eval(), torch.rand(1, 3, 8, 8), backend="reference")
    held = {
        operator_of(n).weight.data_ptr() for n in model.graph.graph.nodes if hasattr(operator_of(n), "weight")
    }
    for node in model._program.plan.graph.graph.nodes:
        for part in operator_of(node).modules() if operator_of(node) is not None else ():
            assert not hasattr(part, "weight") or part.weight.data_ptr() in held


DENSE = {
    "along the width": (lambda m, x: m.width(x), "runs along the width"),
    "rows of the map": (lambda m, x: m.width(x.flatten(1, 2)), "not N C H W"),
    "a computed weight": (lambda m, x: F.linear(x, x[0, 0]), "its weight is computed in every frame"),
    "a product of maps": (lambda m, x: x @ x.transpose(2, 3), "no product with a matrix of weights"),
    "tensordot of another dimension": (
        lambda m, x: torch.tensordot(x, m.rows.weight, dims=([2], [1])),
        "no product of the last dimension",
    ),
    "tensordot of several": (
        lambda m, x: torch.tensordot(x, m.rows.weight, dims=([3, 2], [0, 1])),
        "no product of the last dimension",
    ),
    "einsum of maps": (
        lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x),
        "no product with a matrix of weights",
    ),
    "einsum that sums twice": (
        lambda m, x: torch.einsum("bchw,wh->bc", x, m.rows.weight),
        "no product with a matrix of weights",
    ),
    "a scaled product": (
        lambda m, x: torch.addmm(m.whole.bias, x.flatten(1), m.whole.weight.t(), alpha=2),
        "alpha=2",
    ),
    "the head of one stream": (lambda m, x: m.whole(x.flatten()[:120]), "not N C H W"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, width=nn.Linear(5, 3), rows=nn.Linear(4, 5), whole=nn.Linear(120, 5))
    check_operator(module, A, backend=backend, expect="dense", reason=reason)
