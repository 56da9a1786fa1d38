"""snapshot and restore: what one stream has seen, as bytes that another process goes on from.

A snapshot is a safetensors file in memory. Its tensors are the maps that the network keeps for the stream, one for each
edge of the delta graph, C H W; its metadata says which network, size and backend they belong to.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deltaconvert.errors import InputError

if TYPE_CHECKING:
    from deltaconvert.lower import Program

FORMAT = "deltaconvert.snapshot"
_MOST_HEADER = 64 * 2**20  # bytes; a graph of 1,000 edges takes a tenth of a megabyte


def pack(program: Program, network: str, stream: int) -> bytes:
    """The state of `stream` in `program`; `network` is the fingerprint of its weights."""
    state = {name: tensor.cpu().contiguous() for name, tensor in program.state_of(stream).items()}
    return safetensors.torch.save(state, {"format": FORMAT, "network": network})


def unpack(program: Program, network: str, snapshot: bytes) -> dict[str, Tensor]:
    """The state in `snapshot`; InputError if it is none, or another network's, size's or backend's."""
    if not isinstance(snapshot, bytes | bytearray):
        raise InputError(f"a snapshot is bytes, as snapshot() gives them, not a {type(snapshot).__name__}")
    if _metadata(snapshot).get("network") != network:
        raise InputError("the snapshot is of another network: its weights differ")
    try:
        state = safetensors.torch.load(bytes(snapshot))
    except SafetensorError as error:
        raise InputError(f"the snapshot is damaged or cut short: {error}") from error
    expected = program.forms()
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            raise InputError(
                f"the snapshot is of another size or backend: {name} is {_text(found.get(name))} in it and "
                f"{_text(expected.get(name))} in this network"
            )
    return state


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights, their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _metadata(snapshot: bytes | bytearray) -> dict[str, str]:
    size = int.from_bytes(snapshot[:8], "little")
    if not 2 <= size <= min(_MOST_HEADER, len(snapshot) - 8):
        raise InputError("these bytes are no snapshot, or are cut short")
    try:
        metadata = json.loads(snapshot[8 : 8 + size]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError):
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError("these bytes are no snapshot of a stream")
    return metadata


def _text(form: tuple[torch.dtype, torch.Size] | None) -> str:
    return "missing" if form is None else f"{form[0]} {'x'.join(map(str, form[1]))}"
