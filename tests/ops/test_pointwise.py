"""ops/pointwise.py"""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn

import deltaconvert

MODULES = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.2, inplace=True),
    nn.PReLU(),
    nn.PReLU(3),
    nn.SiLU(inplace=True),
    nn.Sigmoid(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Tanh(),
    nn.ELU(0.5),
    nn.SELU(),
    nn.CELU(0.7),
    nn.Mish(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Softplus(2.0, 10.0),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Hardshrink(0.3),
    nn.Softshrink(0.3),
    nn.Tanhshrink(),
    nn.Threshold(0.1, -2.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules(backend, module, dtype):
    check_operator(module, (2, 3, 5, 7), dtype=dtype, threshold=0.1, backend=backend)


FUNCTIONS = {
    "F.relu inplace": lambda m, x: F.relu(x + 0, inplace=True),
    "F.relu positional inplace": lambda m, x: F.relu(x + 0, True),
    "F.relu_": lambda m, x: F.relu_(x + 0),
    "torch.relu": lambda m, x: torch.relu(x),
    "torch.relu_": lambda m, x: torch.relu_(x + 0),
    "relu": lambda m, x: x.relu(),
    "relu_": lambda m, x: (x + 0).relu_(),
    "F.relu6": lambda m, x: F.relu6(x),
    "F.leaky_relu": lambda m, x: F.leaky_relu(x, 0.3),
    "F.leaky_relu inplace": lambda m, x: F.leaky_relu(x + 0, 0.3, True),
    "F.leaky_relu keyword": lambda m, x: F.leaky_relu(input=x, negative_slope=0.3),
    "F.silu": lambda m, x: F.silu(x),
    "torch.sigmoid": lambda m, x: torch.sigmoid(x),
    "sigmoid": lambda m, x: x.sigmoid(),
    "F.sigmoid": lambda m, x: F.sigmoid(x),
    "F.hardswish": lambda m, x: F.hardswish(x),
    "F.hardsigmoid": lambda m, x: F.hardsigmoid(x),
    "F.gelu": lambda m, x: F.gelu(x, approximate="tanh"),
    "tanh": lambda m, x: x.tanh(),
    "F.prelu": lambda m, x: F.prelu(x, m.slope),
    "prelu": lambda m, x: x.prelu(m.slope),
    "torch.prelu": lambda m, x: torch.prelu(x, m.slope),
    "clamp": lambda m, x: x.clamp(-1, 1),
    "clamp one side": lambda m, x: x.clamp(min=0.25),
    "torch.clamp": lambda m, x: torch.clamp(x, max=0.5),
    "clip": lambda m, x: x.clip(-1, 0.5),
    "clamp_": lambda m, x: (x * 1).clamp_(-1, 1),
    "exp": lambda m, x: x.exp(),
    "log": lambda m, x: torch.log(x.abs() + 1),
    "sqrt": lambda m, x: x.square().sqrt(),
    "rsqrt": lambda m, x: torch.rsqrt(x.abs() + 0.1),
    "neg": lambda m, x: -x,
    "torch.neg": lambda m, x: torch.neg(x),
    "abs": lambda m, x: abs(x),
    "reciprocal": lambda m, x: (x.abs() + 1).reciprocal(),
    "elu": lambda m, x: F.elu(x, 0.5),
    "hardtanh": lambda m, x: F.hardtanh(x, -1.0, 0.5),
    "softplus": lambda m, x: F.softplus(x, beta=2),
    "F.threshold": lambda m, x: F.threshold(x, 0.5, 0.0),
    "sines": lambda m, x: torch.sin(x) + x.cos() - torch.tan(x) * x.atan(),
    "exponents": lambda m, x: x.exp2() + torch.expm1(x),
    "logarithms": lambda m, x: torch.log1p(x.abs()) + (x.abs() + 1).log2() - (x.abs() + 1).log10(),
    "logit": lambda m, x: x.sigmoid().logit() + torch.logit(x, eps=0.1),
    "erf": lambda m, x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "rounding": lambda m, x: x.floor() + torch.ceil(x * 3) + (x * 5).round() + torch.trunc(x * 7),
    "decimals": lambda m, x: torch.round(x, decimals=1),
    "sign": lambda m, x: torch.sign(x) * x.sqrt().nan_to_num(0.5),
    "expit": lambda m, x: torch.special.expit(x),
    "truth values": lambda m, x: ~(x > 0) | x.sqrt().isnan().logical_not(),
    "labels": lambda m, x: -x.argmax(1, keepdim=True).clamp(0, 1).abs(),
    "float": lambda m, x: (x > 0.5).float() * x,
    "half": lambda m, x: x.half() * 2,
    "to": lambda m, x: x.to(torch.float32) + x.to(dtype=torch.float64),
    "to its own": lambda m, x: (x > 0).to(x.dtype) - x.to(x.dtype),
    "type": lambda m, x: x.type(torch.float32).relu(),
    "long": lambda m, x: (x * 10).long() * (x > 0).int() + x.bool(),
    "a bound": lambda m, x: torch.clamp(x, min=m.low) + x.clamp(max=x * 0.5),
    "bounds": lambda m, x: x.clamp(m.low, m.slope[1]) - torch.clamp_min(x, 0.5) * x.clamp_max(1),
}


PARTS = {"slope": torch.tensor([0.1, 0.2, 0.3]), "low": torch.tensor(-0.5)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_methods(backend, name):
    check_operator(Call(FUNCTIONS[name], **PARTS), (2, 3, 4, 5), backend=backend)


def test_casts_in_a_file(tmp_path, backend):
    module, frame = Call(lambda m, x: x.half().float() + x.to(torch.float64)), torch.randn(1, 3, 4, 5)
    deltaconvert.convert(module.eval(), frame, backend=backend).save(tmp_path / "casts.delta")
    loaded = deltaconvert.load(tmp_path / "casts.delta", backend=backend, device=frame.device)
    assert torch.equal(loaded(frame), module(frame))


def test_one_pixel(backend):
    check_operator(nn.SiLU(), (3, 1, 1, 1), threshold=0.1, backend=backend)


DENSE = {
    "bounds of the frame": (lambda m, x: x.clamp(max=x.mean()), "not N C H W"),
    "a device": (lambda m, x: x.to("cpu"), "more than a cast"),
    "a type of the frame": (lambda m, x: x.type_as(x.float()), "no operator for type_as"),
    "no floating point": (lambda m, x: F.relu((x * 10).long()), "not floating point"),
    "an unknown one": (lambda m, x: x.cumsum(1), "no operator for cumsum"),
    "slope of the frame": (lambda m, x: F.prelu(x, x.mean((0, 2, 3))), "its weight is computed"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, low=torch.tensor(-0.5))
    check_operator(module, (2, 3, 4, 5), backend=backend, expect="dense", reason=reason)
