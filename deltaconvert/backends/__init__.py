"""Where a delta graph can run: `reference` defines the meaning, `cpu` and `cuda` compute the same faster."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch

from deltaconvert.errors import InputError

BACKENDS = ("reference", "cpu", "cuda")


def load_backend(name: str, device: torch.device) -> ModuleType:
    """The module of a backend; "auto" takes the fastest for `device`."""
    if name == "auto":
        name = _fastest(device)
    if name not in BACKENDS:
        raise InputError(f"there is no backend {name!r}: choose from auto, {', '.join(BACKENDS)}")
    if name == "cpu" and device.type != "cpu":
        raise InputError(
            f"backend='cpu' runs on the CPU, the example is on {device}: move both model and example there"
        )
    backend = importlib.import_module(f"deltaconvert.backends.{name}")
    if name == "cuda":
        reason = backend.why_not(device)
        if reason is not None:
            raise InputError(reason)
    return backend


def _fastest(device: torch.device) -> str:
    if device.type == "cpu":
        reason = importlib.import_module("deltaconvert.backends.cpu").why_slow()
        if reason is not None:
            warnings.warn(f"{reason} (backend='cpu' says that you know)", stacklevel=4)
        return "cpu"
    if device.type != "cuda":
        return "reference"
    reason = importlib.import_module("deltaconvert.backends.cuda").why_not(device)
    if reason is None:
        return "cuda"
    warnings.warn(f"the slow reference backend runs on {device}: {reason}", stacklevel=4)
    return "reference"
