"""exported: torch.export's program -> the same graph over flat tensors that symbolic tracing gives."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from deltaconvert.errors import UnsupportedModel, first_line
from deltaconvert.ops.base import known_modules
from deltaconvert.passes import run_passes
from deltaconvert.passes.functionalise import WriteToView, functionalise
from deltaconvert.passes.spell_aten import aten_name, spell_aten
from deltaconvert.signature import Signature, tensors_of
from deltaconvert.tracing.quiet import quiet
from deltaconvert.tracing.trace import Traced, refuse_objects
from deltaconvert.tracing.twin import twin

# torch asks of a batch norm on CUDA whether cuDNN takes that many images, and notes the answer as a bound of the batch.
_MOST_IMAGES = 65535


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Capture `model` with torch.export for the call model(*args, **kwargs); the graph holds for these sizes alone.

    UnsupportedModel where torch.export cannot: control flow on values, calls that leave torch.
    """
    return read(_program(model, args, kwargs), args, kwargs)


def export_any_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """The same for any batch, the first dimension of all inputs. Give an example with two images or more: torch.export
    takes a batch of one for a constant.

    UnsupportedModel also where the graph depends on the batch.
    """
    free = pytree.tree_map(lambda leaf: {0: Dim.AUTO} if isinstance(leaf, Tensor) else None, (args, kwargs))
    program = _program(model, args, kwargs, dynamic_shapes=_by_name(model, *free))
    if not is_dynamic(program) or _goes_by_sizes(program):
        raise UnsupportedModel("it computes with the number of images")
    return read(program, args, kwargs)


def _goes_by_sizes(program: ExportedProgram) -> bool:
    """`if x.shape[0] > 2` held one way where it was captured. torch notes that as a bound of the size or, from 2.9 on,
    as a guard, which may also say that two inputs are as long as each other."""
    bounded = any(sizes.upper < _MOST_IMAGES for sizes in program.range_constraints.values())
    return bounded or not all(map(_always_holds, getattr(program, "_guards_code", ())))


def _always_holds(guard: str) -> bool:
    bound = guard.partition(" <= ")[2]
    return guard.partition(" == ")[2].startswith("L[") or (bound.isdigit() and int(bound) >= _MOST_IMAGES)


def _program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **shapes: Any
) -> ExportedProgram:
    try:
        # A copy: some networks cache what forward computes, and under export that is no real tensor.
        with quiet():  # the reason is in the exception
            return torch.export.export(twin(model), args, kwargs, strict=False, **shapes)
    except Exception as error:
        raise UnsupportedModel(f"torch.export cannot capture it: {first_line(error)}") from error


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a call by the names of their parameters of forward, as torch.export wants them."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    named: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if name in bound and parameter.kind is parameter.VAR_KEYWORD:
            named |= bound[name]
        elif name in bound:
            named[name] = bound[name]
    return named


def read(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """The graph of an exported program for the call program.module()(*args, **kwargs); only the batch may be open."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if program.call_spec.in_spec != spec:
        raise UnsupportedModel("the program was exported for other inputs than the example")
    frames = tensors_of(leaves)
    try:
        graph = _flat(program, leaves, frames)
    except WriteToView:
        # functionalise is shorter and keeps names; torch's own decompositions know every view.
        graph = _flat(program.run_decompositions({}), leaves, frames)
    outputs: Any = graph.graph.output_node().args[0]
    constants = {i: value for i, value in enumerate(outputs) if not isinstance(value, fx.Node)}
    refuse_objects(program.graph_module, constants)
    graph.graph.output_node().args = (tuple(value for value in outputs if isinstance(value, fx.Node)),)
    graph.recompile()
    given = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    batch = [None] if is_dynamic(program) else []
    sizes = tuple((*batch, *frame.shape[len(batch) :]) for frame in frames)
    return Traced(graph, Signature(spec, given, program.call_spec.out_spec, constants, sizes))


def is_dynamic(program: ExportedProgram) -> bool:
    """Some size of an input is open."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    return any(_is_open(side) for v in values if isinstance(v, Tensor) for side in v.shape)


def _is_open(side: Any) -> bool:
    """A size that forward goes by (len(x)) is still a symbol of torch's, and known."""
    return isinstance(side, torch.SymInt) and side.node.maybe_as_int() is None


def _flat(program: ExportedProgram, leaves: Sequence[Any], frames: Sequence[Tensor]) -> fx.GraphModule:
    unlift = program.module
    checked = "check_guards" in inspect.signature(unlift).parameters  # torch 2.9 and later
    module: Any = unlift(check_guards=False) if checked else unlift()
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    gm = fx.GraphModule(module, graph, type(module).__name__)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, leaf in zip(inputs, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            if node.users:
                raise UnsupportedModel(f"the program computes with its input {node.name}, which is no tensor")
            graph.erase_node(node)
    _name(gm)
    return run_passes(gm, [functionalise, spell_aten(frames)])


def _name(gm: fx.GraphModule) -> None:
    """meta["path"]: that of the module for the only call of it, else the module and the name of the operator."""
    known = {f"{cls.__module__}.{cls.__qualname__}" for cls in known_modules()}
    homes = {node: list((node.meta.get("nn_module_stack") or {}).values()) for node in gm.graph.nodes}
    calls = Counter(entries[-1][0] for entries in homes.values() if entries)
    for node, entries in homes.items():
        if not entries or node.op != "call_function":
            continue
        path, cls = entries[-1][:2]
        whole = (
            calls[path] == 1
            or (cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}") in known
        )
        name = (aten_name(node) or node.name).rstrip("_")
        node.meta["path"] = path if whole and path else ".".join(filter(None, (path, name)))
