"""torch.fx's tracer for networks as they are: inputs nested anyhow, writes in place, modules made in forward."""

from __future__ import annotations

import linecache
import operator
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.ops.base import is_known
from deltaconvert.passes.functionalise import OUT_OF_PLACE
from deltaconvert.signature import tensors_of
from deltaconvert.tracing.asking import is_asked_by_the_network
from deltaconvert.tracing.lines import is_the_networks
from deltaconvert.tracing.ranks import Ranks, sized_by
from deltaconvert.tracing.stand_in import StandIns

_HOMES = ("torch", "operator", "_operator", "math", "builtins", "deltaconvert")


class Value(fx.Proxy):
    """What a network computes with while it is traced.

    x += y is recorded as a write to x, which it is for tensors; torch's own proxies record x + y. The number of
    dimensions of x is a plain number, and so is the length of its shape. Where `if`, `int` or `float` wants a number
    that follows from sizes, it is the example's, and the graph asserts it; one that follows from weights is known.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    @property
    def __class__(self) -> type:  # type: ignore[override]
        """What isinstance goes by: a proxy for torch and for us, what it is on the example for the network."""
        known = self.tracer.value(self.node) if is_asked_by_the_network() else None
        return type(self) if known is None else type(known)

    @property
    def _is_param(self) -> bool:
        """isinstance(x, nn.Parameter) asks tensors for this."""
        return isinstance(self.tracer.value(self.node), nn.Parameter)

    @property
    def _is_buffer(self) -> bool:
        return isinstance(self.tracer.value(self.node), nn.Buffer)

    def dim(self) -> Any:
        rank = self.tracer.rank(self.node)
        return self.__getattr__("dim")() if rank is None else rank

    ndimension = dim

    @property
    def ndim(self) -> Any:
        rank = self.tracer.rank(self.node)
        return self.__getattr__("ndim") if rank is None else rank

    @property
    def data(self) -> Any:
        """A tensor's own memory under another name, as detach() gives it; of a packed sequence it is a field."""
        is_tensor = isinstance(self.tracer.value(self.node), Tensor)
        return self.detach() if is_tensor else self.__getattr__("data")

    def __len__(self) -> int:
        count = self.tracer.count(self)
        return super().__len__() if count is None else count

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __int__(self) -> int:  # no __index__: torch would ask it for sizes that a graph can hold as they are
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def item(self) -> Any:
        weight = self.tracer.weight(self.node)
        return self.__getattr__("item")() if weight is None else weight.item()

    def __round__(self, *digits: Any) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, *digits), {})


class _Attribute(fx.proxy.Attribute, Value):
    """x.shape, or x.view of x.view(...)."""

    def __getattr__(self, name: str) -> Any:
        """x.device.type is text, which torch.autocast needs as such."""
        kind = self.tracer.kind_of_device(self.node) if name == "type" and self.attr == "device" else None
        return super().__getattr__(name) if kind is None else kind


def _augmented(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        # The node's name, and so its path, is that of x = x + y.
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=plain.__name__)

    return method


for _function, _plain in OUT_OF_PLACE.items():
    setattr(Value, f"__{_function.__name__}__", _augmented(_function, _plain))


class Tracer(fx.Tracer):
    """Traces into everything but operators that deltaconvert knows, and modules and functions asked to stay whole.

    torch.fx patches modules for the whole process: calls that other threads make meanwhile run as they are.
    """

    def __init__(
        self,
        args: Any,
        kwargs: Any,
        keep: Sequence[Any],
        opaque: dict[str, str],
        closed: set[Any],
        another: Callable[[Tensor], Tensor],
    ):
        """closed: functions of torch.fx.wrap that cannot be traced into. another: of a frame, one that a number that
        decides what is computed must be the same for."""
        super().__init__()
        self._call, self._another = (args, kwargs), another
        self._keep, self._opaque, self._closed = tuple(keep), opaque, closed
        self._thread = threading.get_ident()
        self.failed_at: str | None = None
        self.failed_in: Any = None  # a wrapped function
        self._opened: list[fx.Node] = []
        self.outputs: tuple[list[Any], pytree.TreeSpec] | None = None
        self.constants: dict[int, Any] = {}
        self._ranks: list[Ranks] = []
        self._asks = False  # while a value is worked out, modules run and are not traced
        self._told: set[fx.Node] = set()  # nodes whose rank the network used, and the graph asserts
        self._of_weights: dict[fx.Node, bool] = {}  # whether a node follows from weights alone
        # A module's tensor, by its id, and what forward assigned in its place.
        self._assigned: dict[int, tuple[Tensor, fx.Proxy]] = {}
        self._stand_ins = StandIns(lambda proxy: self.value(proxy.node), self._assign)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

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
        if not self._is_tracing() or m is self.root:
            return forward(*args, **kwargs)
        try:
            if isinstance(m, torch.jit.ScriptModule) and not self.is_leaf_module(m, self.path_of_module(m)):
                raise TypeError("it is a program of TorchScript, which hides its calls")
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_at = self.failed_at or self.path_of_module(m)  # the innermost module unwinds first
            raise

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        if kind != "call_function" or not self._opens(target):
            return super().create_proxy(kind, target, args, kwargs, *others, **named)
        try:
            result = target(*args, **kwargs)
            self._opened.append(result.node)
            return result
        except Exception:
            self.failed_in = self.failed_in or target
            raise

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Generator):
            raise TypeError("it draws from a generator, which would move on from frame to frame in a graph")
        return super().create_arg(a)

    def _opens(self, function: Any) -> bool:
        """Whether to trace into it: a function of the network's own that torch.fx.wrap would keep whole."""
        home = getattr(function, "__module__", None) or ""
        own = isinstance(function, FunctionType) and home.partition(".")[0] not in _HOMES
        return own and function not in self._closed

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        with self._stand_ins.answering():
            graph = super().trace(*args, **kwargs)
        for node in self._opened:
            node.meta.pop("is_wrapped", None)  # which torch.fx says of what a wrapped function returns
        return graph

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self._is_tracing():
            return attr_val
        if id(attr_val) in self._assigned:
            return self._assigned[id(attr_val)][1]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _assign(self, module: nn.Module, name: str, value: fx.Proxy) -> bool:
        """self.mean = self.mean.type_as(x) in forward: the module keeps its tensor, which the graph reads by its name,
        and forward gets `value` from now on. False where the attribute is no tensor: the module then assigns it."""
        before = vars(module).get(name, module._buffers.get(name))
        if value.tracer is not self or not isinstance(before, Tensor):  # another thread traces with torch.fx
            return False
        path = self.path_of_module(module)
        # self.norm.running_mean = x.mean((0, 2, 3)): norm stays whole, and would read its own tensor.
        if self.is_leaf_module(module, path):
            raise TypeError(f"forward assigns to {path}.{name}, of a module that stays whole")
        if id(before) not in self._assigned:
            vars(module).pop(name, None)
            # As a buffer it is read through getattr above, by this name; other names of the tensor keep their own.
            before = module._buffers[name] = before.detach()
        self._assigned[id(before)] = before, value
        return True

    def _is_tracing(self) -> bool:
        return threading.get_ident() == self._thread and not self._asks

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Over *x.shape[2:], or the parts of x.chunk(2, 1)."""
        count = self.count(obj)
        return super().iter(obj) if count is None else iter([obj[place] for place in range(count)])

    def count(self, obj: fx.Proxy) -> int | None:
        """How many sizes there are in a shape or a part of one, how many tensors in a tuple; None for anything else."""
        found = sized_by(obj.node)
        if found is not None:
            rank = self.rank(found[0])
            return None if rank is None else len(range(rank)[found[1]])
        value, other = self._values(obj.node)
        if (
            not isinstance(value, tuple | list)
            or not isinstance(other, tuple | list)
            or len(value) != len(other)
        ):
            return None
        length = self.create_proxy("call_function", len, (obj,), {})
        self._assert(length, len(value), f"{obj.node.name} has {len(value)} parts")
        return len(value)

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions, which the graph then asserts: what the network does follows from it."""
        value, _ = self._values(node)
        if not isinstance(value, Tensor):
            return None
        if node not in self._told:
            self._told.add(node)
            dim = self.create_proxy("call_method", "dim", (Value(node, self),), {})
            self._assert(dim, value.dim(), f"{node.name} has {value.dim()} dimensions")
        return value.dim()

    def kind_of_device(self, node: fx.Node) -> str | None:
        device, _ = self._values(node)
        return device.type if isinstance(device, torch.device) else None

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer of `if x.shape[2] > 8`. What values or the number of images decide cannot be traced."""
        value = self._number(obj)
        return super().to_bool(obj) if value is None else bool(value)

    def number(self, obj: fx.Proxy) -> float:
        value = self._number(obj)
        if value is None:
            raise TypeError(
                f"{obj.node.name} is no number that follows from the sizes of the images or from weights"
            )
        return value

    def _number(self, obj: fx.Proxy) -> float | None:
        """A number that follows from weights; or from sizes, if it is the same with one more image: then it is the
        example's, and the graph asserts it."""
        weight = self.weight(obj.node)
        if weight is not None and weight.numel() == 1:
            return weight.item()
        value, other = self._values(obj.node)
        if not isinstance(value, int | float) or value != other:
            return None
        self._assert(obj, value, f"{obj.node.name} is {value}{_line_of_the_network()}")
        return value

    def weight(self, node: fx.Node) -> Tensor | None:
        """The value of a node that is computed from parameters alone; None for any other."""
        for each in node.graph.nodes:
            if each not in self._of_weights:
                inputs = each.all_input_nodes if each.op in ("call_function", "call_method") else []
                known = bool(inputs) and all(self._of_weights[source] for source in inputs)
                self._of_weights[each] = known or each.op == "get_attr"
        value = self._made_of_weights(node, {}) if self._of_weights[node] else None
        return value if isinstance(value, Tensor) else None

    def _made_of_weights(self, node: fx.Node, made: dict[fx.Node, Any]) -> Any:
        if node not in made:
            run = fx.Interpreter(self.root, graph=node.graph)
            run.env = {source: self._made_of_weights(source, made) for source in node.all_input_nodes}
            self._asks = True
            try:
                made[node] = run.run_node(node)
            finally:
                self._asks = False
        return made[node]

    def value(self, node: fx.Node) -> Any:
        """The value on the example; None where it cannot be told."""
        return self._values(node)[0]

    def _values(self, node: fx.Node) -> tuple[Any, Any]:
        """The values on the example, and on another frame: with one more image."""
        self._asks = True
        with self._stand_ins.resting():
            value, other = (ranks.value(node) for ranks in self._ranks)
        self._asks = False
        return value, other

    def _assert(self, found: fx.Proxy, value: Any, what: str) -> None:
        same = self.create_proxy("call_function", operator.eq, (found, value), {})
        fault = f"convert it for this size: it was traced where {what}"
        self.create_proxy("call_function", torch._assert, (same, fault), {})

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
        frames = tensors_of(leaves)
        self._ranks = [Ranks(self.root, frames), Ranks(self.root, [self._another(frame) for frame in frames])]

        def run(root: nn.Module) -> tuple[Any, ...]:
            # Not root_fn, which is its class's: model.forward = model.features is common. Its hooks run, too; a
            # GraphModule's own __call__ prints what fails.
            call = root._call_impl if isinstance(root, fx.GraphModule) else root
            outputs, out_spec = pytree.tree_flatten(call(*args, **kwargs))
            self.outputs = outputs, out_spec
            return tuple(o for o in outputs if isinstance(o, fx.Proxy | Tensor))

        return run, [self.root]


def one_more(frame: Tensor) -> Tensor:
    """The frame with one more image in the batch."""
    return torch.cat((frame, frame[-1:])) if frame.dim() else frame


def _line_of_the_network() -> str:
    """The innermost line of the running calls that is the network's own."""
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if is_the_networks(file):
            return f" in {Path(file).name}:{line}, {linecache.getline(file, line).strip()[:120]}"
    return ""


def _kept(m: nn.Module, path: str, keep: Sequence[Any]) -> bool:
    return any(path == k if isinstance(k, str) else isinstance(m, k) for k in keep)
