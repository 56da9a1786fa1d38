"""A small network in a file."""

import pytest
import torch
from contained import Summed
from torch import nn

import deltaconvert


@pytest.fixture
def saved(tmp_path):
    """(network, converted, path) of a small network with dense parts."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5), Summed()
    )
    model.eval()
    converted = deltaconvert.convert(model, torch.rand(1, 3, 8, 8), threshold="5%", backend="reference")
    path = tmp_path / "net.delta"
    converted.save(path)
    return model, converted, path
