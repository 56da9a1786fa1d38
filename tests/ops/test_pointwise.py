"""ops/pointwise.py"""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn

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
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_methods(backend, name):
    check_operator(Call(FUNCTIONS[name], slope=torch.tensor([0.1, 0.2, 0.3])), (2, 3, 4, 5), backend=backend)


def test_one_pixel(backend):
    check_operator(nn.SiLU(), (3, 1, 1, 1), threshold=0.1, backend=backend)


DENSE = {
    "bounds that are maps": (lambda m, x: torch.clamp(x, min=m.low), "min is a tensor"),
    "bounds of the frame": (lambda m, x: x.clamp(max=x.mean()), "max is computed in every frame"),
    "no floating point": (lambda m, x: F.relu((x * 10).long()), "not floating point"),
    "an unknown one": (lambda m, x: x.cumsum(1), "no operator for cumsum"),
    "slope of the frame": (lambda m, x: F.prelu(x, x.mean((0, 2, 3))), "its weight is computed"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    module = Call(function, low=torch.tensor(-0.5))
    check_operator(module, (2, 3, 4, 5), backend=backend, expect="dense", reason=reason)
