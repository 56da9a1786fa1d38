"""trace: nn.Module -> fx.GraphModule over flat tensors, whatever the nesting of its inputs and outputs."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import UnsupportedModel, first_line
from deltaconvert.nodes import name_called
from deltaconvert.passes import run_passes
from deltaconvert.passes.functionalise import WriteToView, functionalise, says_in_place
from deltaconvert.signature import Signature
from deltaconvert.tracing.lines import is_the_networks
from deltaconvert.tracing.tracer import Tracer, one_more
from deltaconvert.tracing.twin import twin, with_plain_weights
from deltaconvert.tracing.writes import (
    is_island,
    refuse_shared_memories,
    refuse_shared_places,
    refuse_writes_to_constants,
    watch_augmented,
    watch_islands,
    watch_views,
)


@dataclass
class Traced:
    """A traced network: its graph over flat tensors, its signature, and the modules that had to stay whole.

    opaque: module path -> why it was not traced. how: a sentence that says which way found the graph, and why.
    """

    graph: fx.GraphModule
    signature: Signature
    opaque: dict[str, str] = field(default_factory=dict)
    how: str = "traced symbolically"


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    leaves: Sequence[Any] = (),
    may_stay: Callable[[nn.Module], bool] = lambda module: True,
    another: Callable[[Tensor], Tensor] = one_more,
) -> Traced:
    """Trace `model` for the call model(*args, **kwargs).

    leaves: module classes or paths to keep whole; they run as they are, as dense islands. A module whose forward
    cannot be traced becomes one by itself, with the reason. UnsupportedModel if the network's own forward cannot be,
    or that of a module that may not stay whole. another: as in Tracer; the graph holds for its number of images.
    """
    opaque: dict[str, str] = {}
    closed: set[Any] = set()

    def is_stuck(path: str | None) -> bool:
        return not path or path in opaque or not may_stay(root.get_submodule(path))

    while True:
        # forward may write to its module; a failed attempt must leave no trace
        root = with_plain_weights(twin(model))
        tracer = Tracer(tuple(args), kwargs, leaves, opaque, closed, another)
        try:
            module = fx.GraphModule(root, tracer.trace(root), type(model).__name__)
            watch_augmented(module, args, kwargs)
            watch_views(module, args, kwargs)
            refuse_writes_to_constants(module)
            module = run_passes(module, [functionalise])
            watch_islands(module, args, kwargs)
            refuse_shared_memories(module)
            refuse_shared_places(module, root)
            break
        except WriteToView as error:
            if is_stuck(error.path):
                raise UnsupportedModel(
                    f"{type(model).__name__}.forward {first_line(error)}\n"
                    "  Write the line out of place, or move it into a submodule: that then runs whole, as it is."
                ) from error
            opaque[error.path] = first_line(error)
        except Exception as error:
            if tracer.failed_in is not None:
                closed.add(tracer.failed_in)
                continue
            if tracer.failed_at is None or is_stuck(tracer.failed_at):
                raise UnsupportedModel(_why_untraceable(model, error)) from error
            opaque[tracer.failed_at] = f"cannot be traced: {first_line(error)}"
    return _traced(model, module, tracer, pytree.tree_structure((tuple(args), kwargs)), opaque)


def _traced(
    model: nn.Module, module: fx.GraphModule, tracer: Tracer, spec: pytree.TreeSpec, opaque: dict[str, str]
) -> Traced:
    """The result, without calls that nothing reads. spec: of the call's inputs."""
    assert tracer.outputs is not None
    outputs, out_spec = tracer.outputs
    constants = {i: o for i, o in enumerate(outputs) if not isinstance(o, fx.Proxy | Tensor)}
    refuse_objects(model, constants)
    module.graph.eliminate_dead_code(is_impure_node=_is_impure)
    module.recompile()
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target in opaque:
            node.meta["why_dense"] = opaque[str(node.target)]
    # A network recorded from a file knows the only sizes it takes.
    sizes = getattr(model, "meta", {}).get("sizes")
    return Traced(module, Signature(spec, tracer.constants, out_spec, constants, sizes), opaque)


def refuse_objects(model: nn.Module, constants: dict[int, Any]) -> None:
    """Outputs that are no tensors have to be plain values: a graph cannot make them anew in each frame."""
    for place, value in constants.items():
        if not isinstance(value, int | float | bool | str | type(None)):
            raise UnsupportedModel(
                f"{type(model).__name__} returns a {type(value).__name__} at place {place}: return tensors in tuples, "
                "lists, dicts and NamedTuples, or call torch.export.register_dataclass for its class"
            )


def _is_impure(node: fx.Node) -> bool:
    """Dead code may go, unless it writes to a tensor that something else reads."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op in ("call_method", "call_function"):
        return says_in_place(name_called(node)) or node.target in (operator.setitem, torch._assert)
    return is_island(node)


def _why_untraceable(model: nn.Module, error: BaseException) -> str:
    """The user's line that defeated the tracer, and the ways out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_the_networks(frame.filename)]
    where = f"\n  {frames[-1].filename}:{frames[-1].lineno}   {frames[-1].line}" if frames else ""
    return (
        f"cannot trace {type(model).__name__}.forward: {first_line(error)}{where}\n"
        "  Convert the part below it (deltaconvert.convert(model.backbone, ...)), or move the line into a submodule "
        "and keep that whole: leaves=[TheModule]."
    )
