"""convert: the line through the program, trace -> normalise -> plan -> lower -> DeltaModel."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError, UnsupportedModel
from deltaconvert.gate import Gate
from deltaconvert.model import DeltaModel
from deltaconvert.normalise import normalise
from deltaconvert.running.intake import plain
from deltaconvert.running.memory import within_memory
from deltaconvert.running.modes import is_casting, own_types
from deltaconvert.signature import tensors_of
from deltaconvert.thresholds import Threshold, Thresholds, refuse_unknown
from deltaconvert.tracing.capture import capture
from deltaconvert.tracing.parts import Build, Call, find_parts, whole, within
from deltaconvert.tracing.trace import Traced
from deltaconvert.tracing.twin import uncompiled

BACKENDS = ("reference", "cpu", "cuda")


def convert(
    model: nn.Module | ExportedProgram,
    example: Any,
    *,
    threshold: Threshold = 0.0,
    gate: Gate | Mapping[str, Any] | None = None,
    backend: str = "auto",
    leaves: Sequence[type[nn.Module] | str] = (),
    keep_dense: Sequence[str] = (),
) -> DeltaModel:
    """Convert a dense network into one that recomputes only what changed since the last frame.

    model: a network in eval mode, or a program of torch.export (torch.export.load of a .pt2), which needs none of the
        network's own code. It is copied, never modified.
    example: one input as the network takes it: a tensor (N C H W for maps; the images of a batch are streams), a tuple
        of positional inputs, or a dict of keyword inputs. A real frame is best: relative thresholds are measured on it.
    threshold: the largest change that is dropped, at the input and at every activation; 0 is exact. A mapping sets
        kinds and single nodes apart: {"input": 0.04, "activation": "10%", "gate": "1%", "layer1.*": 0.2}, where a
        percentage is one of the node's mean magnitude on `example`. "statistics" are the means and deviations of
        group and instance norms, "linear" are convolutions that no activation follows. Kinds go before parts of the
        network that have their names: a part `input` is reached by the pattern "[i]nput". "10% weighted" goes by what
        the next layers do with each channel; with "10% narrow" a change reaches one pixel of the next layer, not all
        whose window holds it. A path that ends in .json is a file of thresholds, as calibrate makes it.
    gate: how frames are looked at where they come in: Gate(smooth=5, refresh=300) or a dict of its settings. It goes
        before the gate of a file of thresholds.
    backend: "reference", "cpu", "cuda", or "auto": the fastest one for the device of `example`.
    leaves: module classes or paths that run whole, as they are.
    keep_dense: paths of nodes, or patterns of them, that stay dense.

    A network that symbolic tracing cannot see is captured by torch.export, for the size of `example` alone, and any
    batch where it can be; info["capture"] of the result says which way was taken, and why.

    Raises UnsupportedModel if neither the network nor a part of it can be captured, InputError for options and inputs
    that do not fit, such as a path or pattern that means no node. An operator that deltaconvert does not know is no
    error: it stays dense, and explain() says why.
    """
    rules = Thresholds.of(threshold)
    if gate is not None:
        rules = replace(rules, gate=Gate.of(gate))
    if isinstance(keep_dense, str):
        raise InputError(f"keep_dense is a text: give a list, [{keep_dense!r}]")
    args, kwargs = pytree.tree_map_only(Tensor, plain, _call_of(example))
    frames = tensors_of((args, kwargs))
    _check_frames(example, frames)
    if not isinstance(model, ExportedProgram):
        model = uncompiled(model) if isinstance(model, nn.Module) else model
        _check(model, frames)
        _check_leaves(model, leaves)
    device = frames[0].device
    where = load_backend(backend, device)
    if is_casting(device):
        warnings.warn(
            "torch.autocast is on, and a converted network keeps the types of its weights: for half precision convert "
            "model.half() with a frame in half",
            stacklevel=2,
        )

    if rules.outlasts_refresh:
        warnings.warn(
            "refresh renews the frame, not what narrow changes left out in the layers behind it: reset() does, and "
            "monitor(every=100) tells how much it is",
            stacklevel=2,
        )

    def build(traced: Traced, frames: Sequence[Tensor], path: str) -> DeltaModel:
        graph = normalise(traced.graph)
        if path:
            within(graph, path)
        return DeltaModel(graph, traced.signature, frames, rules, where, keep_dense)

    planning = within_memory("the converted network")
    with torch.inference_mode(False), torch.no_grad(), own_types(device), planning:
        converted = _converted(model, (args, kwargs), leaves, build)
    refuse_unknown(rules.rules, converted.names, "threshold")
    refuse_unknown(keep_dense, converted.names, "keep_dense")
    return converted


def _converted(
    model: nn.Module | ExportedProgram,
    call: Call,
    leaves: Sequence[type[nn.Module] | str],
    build: Build,
) -> DeltaModel:
    """The network as one graph; where it cannot be, as it was around its largest parts that can."""
    refusal = None
    try:
        traced = capture(model, *call, leaves)
    except UnsupportedModel as error:
        if isinstance(model, ExportedProgram):
            raise
        traced, refusal = whole(model, *call, str(error)), error
    converted = build(traced, tensors_of(call), "")
    if not isinstance(model, ExportedProgram):
        parts = find_parts(model, traced, call, build)
        if refusal is not None and not parts:
            raise refusal
        converted.install(parts)
        if refusal is not None:
            named = ", ".join(path.partition(".")[2] for path in parts)
            traced.how = f"runs as it was, around its parts {named}: {str(refusal).splitlines()[0]}"
    converted.info["capture"] = traced.how
    return converted


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


def _call_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, dict) and all(isinstance(key, str) for key in example):
        return (), example
    return (example,), {}


def _check(model: nn.Module, frames: Sequence[Tensor]) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give an nn.Module{_way_to_a_module(model)}")
    if isinstance(model, DeltaModel):
        raise InputError("model is converted already")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is a program of TorchScript: convert the module that it was made from, or save it and take "
            "deltaconvert.load_network(file, input=..., trust=True)"
        )
    for path, module in model.named_modules():
        if module.training:
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


def _check_leaves(model: nn.Module, leaves: Sequence[Any]) -> None:
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


def _check_frames(example: Any, frames: Sequence[Tensor]) -> None:
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
