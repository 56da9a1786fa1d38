"""trace: nn.Module -> fx.GraphModule over flat tensors, whatever the nesting of its inputs and outputs."""

from __future__ import annotations

import operator
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError, UnsupportedModel
from deltaconvert.ops.base import is_known
from deltaconvert.passes import run_passes
from deltaconvert.passes.functionalise import OUT_OF_PLACE, WriteToView, functionalise
from deltaconvert.twin import twin, with_plain_weights


@dataclass(frozen=True)
class Signature:
    """How a call of the network maps to flat tensors and back.

    Inputs: `spec` unflattens the leaves of (args, kwargs); `constants` holds the leaves that are no tensors, by their
    place. Outputs: `out_spec` likewise, `out_constants` for outputs that are no tensors. `sizes`: the shapes of the
    tensors, where the graph holds for these alone; None in one for a side that may have any length.
    """

    spec: pytree.TreeSpec
    constants: dict[int, Any]
    out_spec: pytree.TreeSpec
    out_constants: dict[int, Any]
    sizes: tuple[tuple[int | None, ...], ...] | None = None

    def fits(self, shapes: Sequence[Sequence[int]]) -> bool:
        """The graph holds for inputs of these shapes."""
        return self.sizes is None or all(
            len(own) == len(shape) and all(a in (None, b) for a, b in zip(own, shape, strict=True))
            for own, shape in zip(self.sizes, shapes, strict=True)
        )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(width, height) of the first input, where the graph holds for these alone."""
        first = self.sizes[0] if self.sizes else ()
        if len(first) != 4:
            return None
        _, _, height, width = first
        return (width, height) if width and height else None

    _plain: bool = field(init=False)  # a call takes nothing but tensors, by their place

    def __post_init__(self) -> None:
        flat = pytree.tree_structure(((0,) * self.spec.num_leaves, {}))
        # Not when it is first asked for: that would be while torch.compile looks on, which takes no locks.
        object.__setattr__(self, "_plain", not self.constants and self.spec == flat)

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        by_place = self._plain and not kwargs and len(args) == self.spec.num_leaves
        if by_place and all(isinstance(arg, Tensor) for arg in args):
            return list(args)  # to flatten them takes 10 us, a tenth of a still frame on a GPU
        leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
        if spec != self.spec:
            raise InputError(
                f"the call has inputs {_shape_of(spec)}; the network was converted for {_shape_of(self.spec)}"
            )
        tensors = []
        for place, leaf in enumerate(leaves):
            if place in self.constants:
                if isinstance(leaf, Tensor) or leaf != self.constants[place]:
                    raise InputError(
                        f"input {place} is {leaf!r}; the network was converted for the constant "
                        f"{self.constants[place]!r}: convert it once for each value"
                    )
            elif not isinstance(leaf, Tensor):
                raise InputError(
                    f"input {place} is a {type(leaf).__name__}; the network was converted for a tensor there"
                )
            else:
                tensors.append(leaf)
        return tensors

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the call that flattens to `tensors`."""
        return _nested(tensors, self.spec, self.constants)

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """The network's output, nested as it returns it."""
        return _nested(tensors, self.out_spec, self.out_constants)


def _nested(tensors: Sequence[Any], spec: pytree.TreeSpec, constants: dict[int, Any]) -> Any:
    values = iter(tensors)
    leaves = [constants[place] if place in constants else next(values) for place in range(spec.num_leaves)]
    return pytree.tree_unflatten(leaves, spec)


def _shape_of(spec: pytree.TreeSpec) -> str:
    """A readable skeleton of a call: its nesting with * for each leaf."""
    args, kwargs = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    return str(args if not kwargs else (args, kwargs)).replace("'*'", "*")


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
            _AugmentedWatch(module).watch(args, kwargs)
            module = run_passes(module, [functionalise])
            _WriteWatch(module).watch(args, kwargs)
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


class _AugmentedWatch(fx.Interpreter):
    """Runs the graph once, to see what each x += y is: only values tell maps from sizes, and who shares memory.

    meta["rebinds"]: x is no tensor (n = x.shape[2]; n += 1). meta["unseen"]: no tensor that is read later shares
    memory with x, such as another part of the same chunk.
    """

    def watch(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        augmented = [n for n in self.module.graph.nodes if _is_augmented(n)]
        if not augmented:
            return
        for n in augmented:
            n.meta["rebinds"] = True  # stays so where the network does not run: convert says so better
        frames = [
            leaf.clone() for leaf in pytree.tree_leaves((tuple(args), kwargs)) if isinstance(leaf, Tensor)
        ]
        self._ran: set[fx.Node] = set()
        with torch.no_grad(), suppress(Exception):
            self.run(*frames)

    def run_node(self, n: fx.Node) -> Any:
        self._ran.add(n)
        if _is_augmented(n):
            written = self.env[n.args[0]]
            n.meta["rebinds"] = not isinstance(written, Tensor)
            if isinstance(written, Tensor):
                others = self.env.keys() - set(self.user_to_last_uses.get(n, ())) - {n.args[0]}
                values = pytree.tree_leaves([self._read_later(other) for other in others])
                n.meta["unseen"] = not any(isinstance(v, Tensor) and _overlap(written, v) for v in values)
        return super().run_node(n)

    def _read_later(self, node: fx.Node) -> Any:
        """The value, or the parts of it that are: parts[1] does not read parts[0]."""
        value, users = self.env[node], [user for user in node.users if user not in self._ran]
        if isinstance(value, tuple) and all(u.target is operator.getitem for u in users):
            return [value[u.args[1]] if isinstance(u.args[1], int | slice) else value for u in users]
        return value


def _is_augmented(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in OUT_OF_PLACE and isinstance(node.args[0], fx.Node)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """The two share values, not just a storage."""
    if _memory(a) != _memory(b) or a.dtype != b.dtype:
        return _memory(a) == _memory(b)
    mask = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    mask.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(mask.as_strided(b.shape, b.stride(), b.storage_offset()).any())


class _WriteWatch(fx.Interpreter):
    """Runs the graph once, to see which modules that stay whole write to their inputs.

    WriteToView, naming the module around it, where something reads such an input later: only that module as a whole
    sees the write. Where nothing does, meta["writes_inputs"] tells that the module needs inputs of its own.
    """

    def watch(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if any(n.op == "call_module" and not self._is_known(n) for n in self.module.graph.nodes):
            frames = [
                leaf.clone() for leaf in pytree.tree_leaves((tuple(args), kwargs)) if isinstance(leaf, Tensor)
            ]
            with torch.no_grad():
                self.run(*frames)

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module" or self._is_known(n):
            return super().run_node(n)
        inputs = [
            leaf
            for leaf in pytree.tree_leaves(self.fetch_args_kwargs_from_env(n))
            if isinstance(leaf, Tensor)
        ]
        versions = [x._version for x in inputs]
        result = super().run_node(n)
        written = {_memory(x) for x, version in zip(inputs, versions, strict=True) if x._version != version}
        if written:
            n.meta["writes_inputs"] = True
            for other in self.env.keys() - set(self.user_to_last_uses.get(n, ())):
                values = pytree.tree_leaves(self.env[other])
                if any(isinstance(v, Tensor) and _memory(v) in written for v in values):
                    raise WriteToView(_around(n), n, f"to {other.name}, which is read afterwards")
        return result

    def _is_known(self, node: fx.Node) -> bool:
        return is_known(self.module.get_submodule(str(node.target)))


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _around(node: fx.Node) -> str:
    """The path of the module in whose forward `node` calls another; "" for the root."""
    paths = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-2] if len(paths) > 1 else ""


def _is_impure(node: fx.Node) -> bool:
    """Dead code may go, unless it writes to a tensor that something else reads."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in (operator.setitem, torch._assert) or (
            name.endswith("_") and not name.endswith("__")
        )
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))
        return not is_known(module)
    return False


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:160]


def _why_untraceable(model: nn.Module, error: BaseException) -> str:
    """The user's line that defeated the tracer, and the ways out."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in f.filename and "deltaconvert/trace" not in f.filename
    ]
    where = f"\n  {frames[-1].filename}:{frames[-1].lineno}   {frames[-1].line}" if frames else ""
    return (
        f"cannot trace {type(model).__name__}.forward: {first_line(error)}{where}\n"
        "  Convert the part below it (deltaconvert.convert(model.backbone, ...)), or move the line into a submodule "
        "and keep that whole: leaves=[TheModule]."
    )
