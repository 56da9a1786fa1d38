"""record: a module -> a graph of the torch functions that it calls on what follows from its inputs, for their size.

Symbolic tracing stops where a forward looks at sizes or at constants. Here it runs, with inputs that have shapes but
no values, so its Python takes the way that it takes at this size; whoever asks for a value gets an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deltaconvert.errors import UnsupportedModel
from deltaconvert.formats.rehearse import MAX_ELEMENTS

# They ask for values, not for a shape.
_VALUES = (
    "item",
    "tolist",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__complex__",
    "__array__",
)
_META = torch.device("meta")


def record(model: nn.Module, inputs: Sequence[Tensor], constants: int = 2**28) -> fx.GraphModule:
    """The graph of model(*inputs): call_function and call_method nodes, its weights and constants as get_attr.

    inputs: only their shapes and types are read. The graph holds for these shapes alone. constants: elements that
    everything that is computed from weights alone may come to. UnsupportedModel where the network needs the values of
    what it computes, or a value has over 2**31 elements: said before memory is taken for it.
    """
    recorder = _Recorder(constants)
    frames = [recorder.input(place, x) for place, x in enumerate(inputs)]
    with torch.no_grad(), recorder:
        outputs = model(*frames)
    leaves, spec = pytree.tree_flatten(outputs)
    recorder.graph.output(pytree.tree_unflatten([recorder.read(leaf) for leaf in leaves], spec))
    return fx.GraphModule(recorder.root, recorder.graph, type(model).__name__).eval()


class _Recorder(TorchFunctionMode):
    """What follows from the inputs is on the meta device and has a node; everything else is a constant."""

    def __init__(self, constants: int) -> None:
        super().__init__()
        self._left = constants
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no id is given twice

    def input(self, place: int, x: Tensor) -> Tensor:
        return self._known(torch.empty_like(x, device=_META), self.graph.placeholder(f"input_{place}"))

    def read(self, value: Any) -> Any:
        """What stands for `value` in the graph: its node, a get_attr of a constant, or the value itself."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            name = f"constant_{len(self._alive)}"
            self.root.register_buffer(name, value.detach())
            self._known(value, self.graph.get_attr(name))
        return self._nodes[id(value)]

    def _known(self, value: Tensor, node: fx.Node) -> Tensor:
        self._alive.append(value)
        self._nodes[id(value)] = node
        return value

    def _follows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_meta

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        if not any(map(self._follows, pytree.tree_leaves((args, kwargs)))):
            self._rehearse(func, args, kwargs)
            return self._counted(func(*args, **kwargs))
        if name in _VALUES:
            raise UnsupportedModel(f"it needs the values of what it computes ({name})")
        if name == "__get__":  # x.shape, x.dtype, x.device; x.T makes a tensor
            return self._property(func, args)
        result = func(*self._on_meta(args), **self._on_meta(kwargs))
        self._bound(result, name)
        if pytree.tree_any(self._follows, result):
            self._write(func, name, args, kwargs, result)
        return result  # sizes and the like are numbers

    def _property(self, func: Any, args: Any) -> Any:
        result = func(*args)
        if isinstance(result, torch.device):
            return torch.device("cpu")
        if isinstance(result, Tensor):
            self._write(getattr, "getattr", (args[0], func.__self__.__name__), {}, result)
        return result

    def _write(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        read = lambda value: self.read(value)  # noqa: E731
        args, kwargs = pytree.tree_map(read, args), pytree.tree_map(read, kwargs)
        if name != "getattr" and _is_method(func):
            node = self.graph.call_method(name, tuple(args), kwargs)
        else:
            node = self.graph.call_function(func, tuple(args), kwargs)
        if isinstance(result, Tensor):
            self._known(result, node)
        elif isinstance(result, tuple | list):
            for place, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._known(part, self.graph.call_function(_getitem, (node, place)))

    def _on_meta(self, values: Any) -> Any:
        return pytree.tree_map(
            lambda v: (
                v.to(_META)
                if isinstance(v, Tensor) and not v.is_meta
                else _META
                if isinstance(v, torch.device)
                else v
            ),
            values,
        )

    def _rehearse(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """A constant of absurd size is refused before it is computed."""
        try:
            with _META:
                result = func(*self._on_meta(args), **self._on_meta(kwargs))
        except Exception:
            return  # it needs values, or is no computation
        self._bound(result, getattr(func, "__name__", str(func)), self._left)

    def _counted(self, result: Any) -> Any:
        self._left -= sum(x.numel() for x in pytree.tree_leaves(result) if isinstance(x, Tensor))
        return result

    def _bound(self, result: Any, name: str, most: int = MAX_ELEMENTS) -> None:
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() > most:
                raise UnsupportedModel(
                    f"{name} makes a value of {'x'.join(map(str, leaf.shape))}: over {most} elements"
                )


def _getitem(values: Any, place: int) -> Any:
    return values[place]


def _is_method(func: Any) -> bool:
    return getattr(torch.Tensor, getattr(func, "__name__", ""), None) is func
