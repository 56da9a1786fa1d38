"""convert: the line through the program, trace -> normalise -> plan -> lower -> DeltaModel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deltaconvert.arguments import call_of, check_frames, check_leaves, check_network
from deltaconvert.backends import load_backend
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
    threshold: the largest change that is dropped, at the input and at every activation; 0 is exact. "10%" is a share
        of a node's mean magnitude on `example`. A mapping has rules by kind of node and by path:
        {"input": 0.04, "activation": "10%", "gate": "1%", "layer1.*": 0.2}. A path that ends in .json is a file of
        thresholds, as calibrate writes it. All kinds and forms of rules are in deltaconvert.thresholds and
        docs/thresholds.md.
    gate: how frames are compared at the input: Gate(smooth=5, refresh=300), or a dict of its settings. If a file of
        thresholds has a gate, a dict changes these settings of it, and a Gate replaces it.
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
        rules = rules.with_gate(gate)
    if isinstance(keep_dense, str):
        raise InputError(f"keep_dense is a text: give a list, [{keep_dense!r}]")
    args, kwargs = pytree.tree_map_only(Tensor, plain, call_of(example))
    frames = tensors_of((args, kwargs))
    check_frames(example, frames)
    if not isinstance(model, ExportedProgram):
        model = uncompiled(model) if isinstance(model, nn.Module) else model
        check_network(model, frames)
        check_leaves(model, leaves)
    device = frames[0].device
    where = load_backend(backend, device)
    if is_casting(device):
        warnings.warn(
            "torch.autocast is on, and a converted network keeps the types of its weights: for half precision convert "
            "model.half() with a frame in half",
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
    for doubt in converted.doubts(frames):
        warnings.warn(doubt, stacklevel=2)
    return converted


def _converted(
    model: nn.Module | ExportedProgram,
    call: Call,
    leaves: Sequence[type[nn.Module] | str],
    build: Build,
) -> DeltaModel:
    """The network as one graph; if it cannot be, the dense network with its largest parts that can."""
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
