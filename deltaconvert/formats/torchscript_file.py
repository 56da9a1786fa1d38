"""A file of torch.jit.save -> ExportedProgram. It is a program, which torch's interpreter runs: only on your word."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from deltaconvert.errors import CheckpointError
from deltaconvert.formats import Sizes, example_of
from deltaconvert.formats.archive import check_archive


def load(path: Path, sizes: Sizes | None, trust: bool) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """The program for inputs of `sizes`, which the file does not say."""
    if not trust:
        raise CheckpointError(
            "is TorchScript, a program that can read files and run for ever: say --trust (in Python trust=True) where "
            "you know where it is from, or export the network with torch.export.save"
        )
    if sizes is None:
        raise CheckpointError("does not say the size of its input: give it, --input 1x3x720x1280")
    check_archive(path)
    try:
        from torch._export.converter import TS2EPConverter  # of torch 2.5 to 2.13 at least
    except ImportError as error:
        raise CheckpointError(
            f"is TorchScript, which torch {torch.__version__} does not turn into a graph: export the network with "
            "torch.export.save"
        ) from error
    module = torch.jit.load(path, map_location="cpu").eval()
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    example = example_of(sizes, [dtype] * len(sizes))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells its progress
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that only training reads
            return TS2EPConverter(module, example).convert(), example
    finally:
        logging.disable(level)
