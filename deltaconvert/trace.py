"""trace: nn.Module -> fx.GraphModule over flat tensors, whatever the nesting of its inputs and outputs."""

from __future__ import annotations

import operator
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import UnsupportedModel, first_line
from deltaconvert.ops.base import is_known
from deltaconvert.passes import run_passes
from deltaconvert.passes.functionalise import OUT_OF_PLACE, WriteToView, functionalise
from deltaconvert.signature import Signature
from deltaconvert.twin import twin, with_plain_weights
from deltaconvert.writes import is_island, watch_augmented, watch_islands

_HERE = str(Path(__file__).parent)


@dataclass
class Traced:
    """A traced network: its graph over flat tensors, its signature, and the modules that had to stay whole.

    opaque: module path -> why it was not traced. how: a sentence on the way that the graph was found, and why that one.
    """

    graph: fx.GraphModule
    signature: Signature
    opaque: dict[str, str] = field(default_factory=dict)
    how: str = "traced symbolically"


class _Proxy(fx.Proxy):
    """Records x += y as what it is for tensors, a write to x; torch's own proxies record x + y."""


def _augmented(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        # The node's name, and so its path, is that of x = x + y.
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=plain.__name__)

    return method


for _function, _plain in OUT_OF_PLACE.items():
    setattr(_Proxy, f"__{_function.__name__}__", _augmented(_function, _plain))


class _Tracer(fx.Tracer):
    """Traces into everything but operators that deltaconvert knows and modules asked to stay whole.

    torch.fx looks on through the modules of the whole process: what other threads call meanwhile runs as it is.
    """

    def __init__(self, args: Any, kwargs: Any, keep: Sequence[Any], opaque: dict[str, str]):
        super().__init__()
        self._call = args, kwargs
        self._keep, self._opaque = tuple(keep), opaque
        self._thread = threading.get_ident()
        self.failed_at: str | None = None
        self.outputs: tuple[list[Any], pytree.TreeSpec] | None = None
        self.constants: dict[int, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            is_known(m)
            or module_qualified_name in self._opaque
            or _kept(m, module_qualified_name, self._keep)
        )

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:  # made inside forward: a slice of a Sequential, a nn.ReLU()
            path = f"made_in_forward_{len(self.root._modules)}"
            self.root.add_module(path, mod)
            self.submodule_paths[mod] = path  # type: ignore[index]
            return path

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        try:
            if isinstance(m, torch.jit.ScriptModule) and not self.is_leaf_module(m, self.path_of_module(m)):
                raise TypeError("it is a program of TorchScript, which hides its calls")
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_at = self.failed_at or self.path_of_module(m)  # the innermost module unwinds first
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Flat placeholders for the tensors, the user's nesting around them, and the outputs flat again."""
        leaves, spec = pytree.tree_flatten(self._call)
        proxies: list[Any] = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                proxies.append(self.create_proxy("placeholder", f"input_{place}", (), {}))
            else:
                self.constants[place] = leaf
                proxies.append(leaf)
        args, kwargs = pytree.tree_unflatten(proxies, spec)

        def run(root: nn.Module) -> tuple[Any, ...]:
            outputs, out_spec = pytree.tree_flatten(root_fn(root, *args, **kwargs))
            self.outputs = outputs, out_spec
            return tuple(o for o in outputs if isinstance(o, fx.Proxy | Tensor))

        return run, [self.root]


def _kept(m: nn.Module, path: str, keep: Sequence[Any]) -> bool:
    return any(path == k if isinstance(k, str) else isinstance(m, k) for k in keep)


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    leaves: Sequence[Any] = (),
    may_stay: Callable[[nn.Module], bool] = lambda module: True,
) -> Traced:
    """Trace `model` for the call model(*args, **kwargs).

    leaves: module classes or paths to keep whole; they run as they are, as dense islands. A module whose forward
    cannot be traced becomes one by itself, with the reason. UnsupportedModel if the network's own forward cannot be,
    or that of a module that may not stay whole.
    """
    opaque: dict[str, str] = {}

    def is_stuck(path: str | None) -> bool:
        return not path or path in opaque or not may_stay(root.get_submodule(path))

    while True:
        # forward may write to its module; a failed attempt must leave no trace
        root = with_plain_weights(twin(model))
        tracer = _Tracer(tuple(args), kwargs, leaves, opaque)
        try:
            module = fx.GraphModule(root, tracer.trace(root), type(model).__name__)
            watch_augmented(module, args, kwargs)
            module = run_passes(module, [functionalise])
            watch_islands(module, args, kwargs)
            break
        except WriteToView as error:
            if is_stuck(error.path):
                raise UnsupportedModel(
                    f"{type(model).__name__}.forward {first_line(error)}\n"
                    "  Write the line out of place, or move it into a submodule: that then runs whole, as it is."
                ) from error
            opaque[error.path] = first_line(error)
        except Exception as error:
            if tracer.failed_at is None or is_stuck(tracer.failed_at):
                raise UnsupportedModel(_why_untraceable(model, error)) from error
            opaque[tracer.failed_at] = f"cannot be traced: {first_line(error)}"
    assert tracer.outputs is not None
    outputs, out_spec = tracer.outputs
    constants = {i: o for i, o in enumerate(outputs) if not isinstance(o, fx.Proxy | Tensor)}
    refuse_objects(model, constants)
    module.graph.eliminate_dead_code(is_impure_node=_is_impure)
    module.recompile()
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target in opaque:
            node.meta["why_dense"] = opaque[str(node.target)]
    _, spec = pytree.tree_flatten((tuple(args), kwargs))
    sizes = getattr(model, "meta", {}).get("sizes")  # of a network that was recorded for these alone
    return Traced(module, Signature(spec, tracer.constants, out_spec, constants, sizes), opaque)


def refuse_objects(model: nn.Module, constants: dict[int, Any]) -> None:
    """Outputs that are no tensors have to be plain values: a graph cannot make them anew in each frame."""
    for place, value in constants.items():
        if not isinstance(value, int | float | bool | str | type(None)):
            raise UnsupportedModel(
                f"{type(model).__name__} returns a {type(value).__name__} at place {place}: return tensors in tuples, "
                "lists and dicts, or register the class with torch.utils._pytree.register_pytree_node"
            )


def _is_impure(node: fx.Node) -> bool:
    """Dead code may go, unless it writes to a tensor that something else reads."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_method":
        return _is_in_place(str(node.target))
    if node.op == "call_function":
        named = _is_in_place(getattr(node.target, "__name__", ""))
        return named or node.target in (operator.setitem, torch._assert)
    return is_island(node)


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _why_untraceable(model: nn.Module, error: BaseException) -> str:
    """The user's line that defeated the tracer, and the ways out."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and not frame.filename.startswith(_HERE)
    ]
    where = f"\n  {frames[-1].filename}:{frames[-1].lineno}   {frames[-1].line}" if frames else ""
    return (
        f"cannot trace {type(model).__name__}.forward: {first_line(error)}{where}\n"
        "  Convert the part below it (deltaconvert.convert(model.backbone, ...)), or move the line into a submodule "
        "and keep that whole: leaves=[TheModule]."
    )
