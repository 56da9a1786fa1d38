"""torch.fx's tracer for networks as they are: inputs nested anyhow, writes in place, modules made in forward."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.ops.base import is_known
from deltaconvert.passes.functionalise import OUT_OF_PLACE
from deltaconvert.ranks import Ranks, channels_of, sized_by
from deltaconvert.signature import tensors_of


class Value(fx.Proxy):
    """What a network computes with while it is traced.

    x += y is recorded as what it is for tensors, a write to x; torch's own proxies record x + y. How many dimensions x
    has is a number, and so is how many sizes.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def dim(self) -> Any:
        rank = self.tracer.rank(self.node)
        return self.__getattr__("dim")() if rank is None else rank

    ndimension = dim

    @property
    def ndim(self) -> Any:
        rank = self.tracer.rank(self.node)
        return self.__getattr__("ndim") if rank is None else rank

    def __len__(self) -> int:
        count = self.tracer.sizes(self.node)
        return super().__len__() if count is None else count


class _Attribute(fx.proxy.Attribute, Value):
    """x.shape, or x.view of x.view(...)."""


def _augmented(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        # The node's name, and so its path, is that of x = x + y.
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=plain.__name__)

    return method


for _function, _plain in OUT_OF_PLACE.items():
    setattr(Value, f"__{_function.__name__}__", _augmented(_function, _plain))


class Tracer(fx.Tracer):
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
        self._ranks: Ranks | None = None
        self._asks = False  # for a rank: modules run then
        self._told: set[fx.Node] = set()  # whose dimensions the network was told

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
        if not self._is_tracing():
            return forward(*args, **kwargs)
        try:
            if isinstance(m, torch.jit.ScriptModule) and not self.is_leaf_module(m, self.path_of_module(m)):
                raise TypeError("it is a program of TorchScript, which hides its calls")
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_at = self.failed_at or self.path_of_module(m)  # the innermost module unwinds first
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self._is_tracing():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _is_tracing(self) -> bool:
        return threading.get_ident() == self._thread and not self._asks

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Over *x.shape[2:]."""
        count = self.sizes(obj.node)
        return super().iter(obj) if count is None else iter([obj[place] for place in range(count)])

    def sizes(self, node: fx.Node) -> int | None:
        """How many sizes a node has that is a shape or a part of one."""
        found = sized_by(node)
        rank = self.rank(found[0]) if found else None
        return None if found is None or rank is None else len(range(rank)[found[1]])

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions, which the graph then asserts: what the network does follows from it."""
        value = self._value(node)
        if not isinstance(value, Tensor):
            return None
        if node not in self._told:
            self._told.add(node)
            dim = self.create_proxy("call_method", "dim", (Value(node, self),), {})
            self._assert(dim, value.dim(), f"{node.name} has {value.dim()} dimensions")
        return value.dim()

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Of `assert x.shape[1] == 3`: channels are the same in every frame."""
        maps = channels_of(obj.node)
        value = self._value(obj.node) if maps and all(self.rank(each) == 4 for each in maps) else None
        if not isinstance(value, int):
            return super().to_bool(obj)
        self._assert(obj, value, f"{obj.node.name} is {value}")
        return bool(value)

    def _value(self, node: fx.Node) -> Any:
        assert self._ranks is not None
        self._asks = True
        value = self._ranks.value(node)
        self._asks = False
        return value

    def _assert(self, found: fx.Proxy, value: Any, what: str) -> None:
        same = self.create_proxy("call_function", operator.eq, (found, value), {})
        self.create_proxy("call_function", torch._assert, (same, f"the network was traced where {what}"), {})

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
        self._ranks = Ranks(self.root, tensors_of(leaves))

        def run(root: nn.Module) -> tuple[Any, ...]:
            outputs, out_spec = pytree.tree_flatten(root_fn(root, *args, **kwargs))
            self.outputs = outputs, out_spec
            return tuple(o for o in outputs if isinstance(o, fx.Proxy | Tensor))

        return run, [self.root]


def _kept(m: nn.Module, path: str, keep: Sequence[Any]) -> bool:
    return any(path == k if isinstance(k, str) else isinstance(m, k) for k in keep)
