"""Whole networks in files: ONNX, programs of torch.export (.pt2) and TorchScript; see docs/checkpoints.md.

kind.py       what a file is, by its content
onnx_file.py, exported_file.py, torchscript_file.py    one for each kind; archive.py opens their zip files
record.py     writes down the functions of torch that a network calls
rehearse.py   runs a graph from a file without memory first
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltaconvert.errors import CheckpointError, DeltaConvertError, InputError
from deltaconvert.formats.kind import NETWORKS, Kind, kind_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["NETWORKS", "Kind", "kind_of", "load_network"]
MAX_ELEMENTS = 2**28  # of one input, as in container.py
Sizes = Sequence[tuple[int, ...]]


def load_network(
    path: str | Path,
    *,
    input: Sequence[int] | Sequence[Sequence[int]] | None = None,
    trust: bool = False,
) -> tuple[nn.Module | ExportedProgram, tuple[Tensor, ...]]:
    """The network in an ONNX, .pt2 or TorchScript file, and an example call: convert(*load_network(path)) converts it.

    input: the shape of its input, or a list of shapes, one for each: needed where the file leaves them open.
    trust: TorchScript is a program that torch's own interpreter runs; only you know whether it is from a good source.
    Nothing in the others runs. CheckpointError, which names the file and the way out, for a file that is damaged,
    hostile, or of another kind; OSError if there is none.
    """
    path = Path(path)
    kind, sizes = kind_of(path), _sizes(input)
    try:
        if kind is Kind.ONNX:
            from deltaconvert.formats import onnx_file

            return onnx_file.load(path, sizes)
        if kind is Kind.EXPORTED:
            from deltaconvert.formats import exported_file

            return exported_file.load(path, sizes)
        if kind is Kind.TORCHSCRIPT:
            from deltaconvert.formats import torchscript_file

            return torchscript_file.load(path, sizes, trust)
    except (InputError, OSError):
        raise
    except DeltaConvertError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # what damage comes to is for the library that reads the file to say
        text = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: cannot be read as {kind.value} ({type(error).__name__}: {text}): copy or export it again"
        ) from error
    raise CheckpointError(f"{path}: {_NO_NETWORK[kind]}")


_NO_NETWORK = {
    Kind.WEIGHTS: "holds weights but no network: name that, --arch package.module:factory, or in Python load "
    "the weights into it (load_state_dict)",
    Kind.CONVERTED: "is a converted network already: deltaconvert.load reads it",
    Kind.UNKNOWN: "is no network that deltaconvert knows: give ONNX, a .pt2 of torch.export.save, or TorchScript; a "
    "state_dict needs its architecture beside it",
}


def example_of(sizes: Sizes, dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    """Noise of these shapes; CheckpointError where they are absurd."""
    generator = torch.Generator().manual_seed(0)
    frames = []
    for size, dtype in zip(sizes, dtypes, strict=True):
        elements = 1
        for length in size:
            elements *= length
        if elements > MAX_ELEMENTS or elements < 1 or len(size) > 8:
            raise CheckpointError(
                f"its input is {'x'.join(map(str, size))}: from 1 to {MAX_ELEMENTS} elements can be taken"
            )
        noise = torch.rand(size, generator=generator) if dtype.is_floating_point else torch.zeros(size)
        frames.append(noise.to(dtype))
    return tuple(frames)


def _sizes(input: Sequence[int] | Sequence[Sequence[int]] | None) -> Sizes | None:
    if input is None:
        return None
    if isinstance(input, Tensor):
        raise InputError(f"input is a tensor: give its shape, {tuple(input.shape)}")
    shapes: list[Any] = [input] if all(isinstance(length, int) for length in input) else list(input)
    if not shapes or not all(isinstance(shape, Sequence) and shape for shape in shapes):
        raise InputError(f"input is {input!r}: give a shape such as (1, 3, 720, 1280), or a list of them")
    if not all(type(length) is int and length > 0 for shape in shapes for length in shape):
        raise InputError(f"input is {input!r}: its lengths are whole numbers above 0")
    return [tuple(shape) for shape in shapes]
