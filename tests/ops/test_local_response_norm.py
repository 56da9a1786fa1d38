"""ops/local_response_norm.py"""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn

NORMS = {
    "nn.LocalResponseNorm": nn.LocalResponseNorm(3),
    "an even size": nn.LocalResponseNorm(2, alpha=0.5, beta=0.6, k=2.0),
    "F.local_response_norm": lambda m, x: F.local_response_norm(x, 5, 0.1, k=0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NORMS)
def test_spellings(backend, name, dtype):
    norm = NORMS[name] if isinstance(NORMS[name], nn.Module) else Call(NORMS[name])
    check_operator(norm, (2, 6, 9, 7), dtype=dtype, threshold=0.1, backend=backend)


def test_between_convolutions(backend):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.Conv2d(8, 4, 3))
    check_operator(network, (2, 3, 23, 18), dtype=torch.float32, threshold=0.1, backend=backend)
