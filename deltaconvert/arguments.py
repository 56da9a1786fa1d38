"""What convert takes, or an error that says what does not fit, and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from deltaconvert.errors import InputError
from deltaconvert.model import DeltaModel
from deltaconvert.thresholds import refuse_unknown
from deltaconvert.tracing.twin import is_exported


def call_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the call that an example stands for: a tuple has positional inputs, a dict those by name."""
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, dict) and all(isinstance(key, str) for key in example):
        return (), example
    return (example,), {}


def check_network(model: nn.Module, frames: Sequence[Tensor]) -> None:
    """A module in eval mode, whole, and on one device with its frames."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give an nn.Module{_way_to_a_module(model)}")
    if isinstance(model, DeltaModel):
        raise InputError("model is converted already: give the dense one, or change it by with_thresholds")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is a program of TorchScript: convert the module that it was made from, or save it and take "
            "deltaconvert.load_network(file, input=..., trust=True)"
        )
    for path, module in model.named_modules():
        if module.training and not is_exported(model):
            where = f" (its part {path} is)" if path and not model.training else ""
            raise InputError(f"model is in training mode{where}: call model.eval() first")
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise InputError(
                    f"{path or 'model'} has no {name} yet, it is lazy: call the model once first"
                )
    devices = {frame.device for frame in frames} | {p.device for p in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise InputError(
            f"model and example are spread over {', '.join(sorted(map(str, devices)))}: move both to one device"
        )


def _way_to_a_module(model: Any) -> str:
    if isinstance(model, str | PathLike):
        return ", such as deltaconvert.load_network(path) reads of ONNX, .pt2 and TorchScript files"
    if isinstance(model, Mapping):
        return ": these look like weights, which model.load_state_dict(weights) loads into one"
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f", not its class: {model.__name__}(...).eval()"
    return ""


def check_leaves(model: nn.Module, leaves: Sequence[Any]) -> None:
    """Classes of modules, and paths that the network has."""
    if isinstance(leaves, str):
        raise InputError(f"leaves is a text: give a list, [{leaves!r}]")
    for leaf in leaves:
        if not isinstance(leaf, str) and not (isinstance(leaf, type) and issubclass(leaf, nn.Module)):
            raise InputError(
                f"leaves has a {type(leaf).__name__}: give classes of modules, or paths such as 'head.0'"
            )
    refuse_unknown(
        (x for x in leaves if isinstance(x, str)), [path for path, _ in model.named_modules()], "leaves"
    )


def check_frames(example: Any, frames: Sequence[Tensor]) -> None:
    """One tensor at least, none empty, and as many images in all of them. frames: the tensors of `example`."""
    if not frames:
        raise InputError(
            f"example is a {type(example).__name__} without a tensor in it: give one input as the network takes it, "
            "torch.rand(1, 3, 720, 1280), or torch.from_numpy(array)"
        )
    for place, frame in enumerate(frames):
        if frame.numel() == 0:
            raise InputError(f"example input {place} is empty: its shape is {tuple(frame.shape)}")
    batches = {frame.shape[0] for frame in frames if frame.dim() == 4}
    if len(batches) > 1:
        raise InputError(
            f"the example's inputs have batches of {sorted(batches)}: every stream needs one image in each"
        )
