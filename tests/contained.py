"""Writes, loads and rewrites files of converted networks for tests."""

import hashlib
import json

import safetensors.torch
import torch
from torch import nn

import deltaconvert


class Summed(nn.Module):
    """A network with calls of a function and of a method that stay dense."""

    def forward(self, x):
        return torch.cumsum(x, 1).cumprod(1)


def load(path):
    return deltaconvert.load(path, backend="reference")


def video(*shape, frames=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator)
    for number in range(frames):
        yield x
        x = x.clone()
        x[..., number : number + 3, 2:6] += 0.3


def bits(tensors):
    return {name: (t.dtype, t.shape, t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


def rewrite(path, change=None, **fields):
    """Write a file anew with other contents and a right checksum; `change` edits the description."""
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = {**head["__metadata__"], "sha256": "0" * 64, **fields}
    if change is not None:
        network = json.loads(metadata["network"])
        change(network)
        metadata["network"] = json.dumps(network)
    new = bytearray(safetensors.torch.save(safetensors.torch.load(data), metadata))
    place = new.find(b'"sha256":"') + 10
    new[place : place + 64] = hashlib.sha256(new).hexdigest().encode()
    path.write_bytes(new)
