"""What an operator is, and how the spellings of one find it.

An operator is an nn.Module with these rules, on maps of shape N C H W:

    forward(*values)              the dense operator; it is the meaning, every backend must equal it
    reaches(shapes, out_shape)    for each input, which of its pixels an output pixel reads (deltaconvert.reach)
    why_dense(shapes, out_shape)  None, or the reason why this call cannot run as a delta node
    on_maps(layouts)              for values in other layouts than N C H W: the equivalent operator on the maps

and `spelled` functions that turn the ways a network may write it (a module, a function, a method name) into it.
Adding an operator is adding one file to this folder; `find` discovers it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from deltaconvert.errors import GraphError
from deltaconvert.layout import Layout
from deltaconvert.reach import Pixel, Reach

Shape = tuple[int, ...]
Spelling = Callable[..., tuple["Operator", list[Any]]]
_spellings: dict[Any, Spelling] = {}


class StaysDense(Exception):
    """Raised by a spelling that cannot become a delta operator; the text is the reason that explain() shows."""


class Operator(nn.Module):
    """One call site of one operator. Every parameter of __init__ is kept as an attribute of the same name:
    tensors as buffers, the rest as plain JSON values, so that saving a graph needs nothing else.

    elementwise: reads and writes each value by itself, so it may join the tail of the operator before it.
    activation:  the paper places a threshold here (DeltaCNN, section 3.2).
    copies:      an output pixel with a single source is `copied` from it: nearest interpolation, padding, crops.
    fill:        what lies outside the map for an operator with a window, and in pixels without a source.
    position_free: the same function at every pixel, so that a backend may compute any pixels apart from the rest.
    narrows:     its window is over its inputs, so that it may look at the middle only (deltaconvert/narrow.py).
    integers:    its maps may also hold integers or truth values: class labels, comparisons.
    """

    elementwise: ClassVar[bool] = False
    activation: ClassVar[bool] = False
    copies: ClassVar[bool] = False
    fill: ClassVar[float] = 0.0
    position_free: ClassVar[bool] = True
    narrows: ClassVar[bool] = True
    integers: ClassVar[bool] = False

    if TYPE_CHECKING:  # weights are buffers, made by `keep`; torch would say Tensor | Module

        def __getattr__(self, name: str) -> Any: ...

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        return [Pixel() for _ in shapes]

    def why_dense(self, shapes: Sequence[Shape], out_shape: Shape) -> str | None:
        return None

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        """The operator on maps for values that hold them in `layouts`, and the layout of its result; None if there is
        none. Asked where a network works on N H W C, on tokens or on N C (passes/follow_layouts.py)."""
        return None

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        """Multiply-accumulates of the whole map; comparisons and single additions count as none."""
        return 0

    def on_windows(self, windows: Tensor) -> Tensor:
        """The operator on gathered windows (n, C, h, w), their borders already filled: no padding of its own.

        Only operators whose first input has a Window reach have one; (n, C', T, T) comes back.
        """
        raise NotImplementedError(f"{type(self).__name__} has no window")

    def copied(self, rows: Tensor) -> Tensor:
        """For operators that copy: (n, C) source pixels -> (n, C') output pixels, all channels or some."""
        return rows

    def of_parts(self, pixels: Tensor, inside: Tensor) -> Tensor:
        """Summaries of parts of the first input's map, for `combined`: (parts, a power of two, C) -> (parts, K).

        inside: bool (parts, the same, 1), not set where a pixel is only a filler. A part gives the same bits whatever
        parts it is computed with. Only operators whose result is one pixel may have this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no parts")

    def combined(self, parts: Tensor, counts: Tensor) -> Tensor:
        """The result (N, C') from the summaries of each stream's parts (N, parts, K) and their numbers of pixels
        (parts)."""
        raise NotImplementedError(f"{type(self).__name__} has no parts")

    def gains(self) -> Tensor | None:
        """(C): how strongly each channel of the first input acts on the result; None where that is not known."""
        return None

    def magnitude(self, value: Tensor) -> float:
        """What relative thresholds refer to: the magnitude of the result."""
        return mean_magnitude(value)

    def settings(self) -> dict[str, Any]:
        """Everything that __init__ took, by name."""
        return {
            name: getattr(self, name)
            for name in inspect.signature(type(self).__init__).parameters
            if name != "self"
        }

    def keep(self, name: str, tensor: Tensor | None) -> None:
        """Keep a weight as a buffer, cut off from the user's parameter and from autograd."""
        self.register_buffer(name, None if tensor is None else tensor.detach())

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.settings().items() if not isinstance(v, Tensor))


def mean_magnitude(value: Tensor) -> float:
    return float(value.abs().mean(dtype=torch.float32))


def spelled(*targets: Any) -> Callable[[Spelling], Spelling]:
    """Register how a network may write an operator.

    targets: nn.Module classes, functions, or names of Tensor methods. The decorated function gets the call as the
    network wrote it (for a module: the module, then its inputs; constant tensors are tensors, everything computed per
    frame is an fx.Node) and returns (operator, inputs), or raises StaysDense with the reason. Where one call is two
    operators, an input is itself such a pair: (conv, [(pad, [x])]).
    """

    def register(spelling: Spelling) -> Spelling:
        for target in dict.fromkeys(targets):  # torch.conv2d is F.conv2d
            if target in _spellings:
                raise GraphError(
                    f"{target} is spelled twice: in {_spellings[target].__module__} and {spelling.__module__}"
                )
            _spellings[target] = spelling
        return spelling

    return register


@lru_cache(maxsize=1)
def _discover() -> None:
    import deltaconvert.ops as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def find(target: Any) -> Spelling | None:
    """The spelling of a module instance, a function or a method name; None if no operator knows it."""
    _discover()
    if isinstance(target, nn.Module):
        return _spellings.get(type(target)) if is_known(target) else None
    try:
        return _spellings.get(target)
    except TypeError:  # an unhashable callable
        return None


def is_known(module: nn.Module) -> bool:
    """Its class has a spelling, and the instance does what its class does. Hooks (pruning, spectral_norm) change that,
    and so do methods set on the instance (forward, a _conv_forward with circular padding)."""
    _discover()
    if type(module) not in _spellings or module._forward_hooks or module._forward_pre_hooks:
        return False
    # Attributes that are no methods do not count: YOLOs set layer.type, a text, on every layer.
    own = (name for name, value in vars(module).items() if callable(value))
    return not any(callable(getattr(type(module), name, None)) for name in own)


def operator_types() -> dict[str, type[Operator]]:
    """All operators by class name: what a converted file may contain."""
    _discover()
    found: dict[str, type[Operator]] = {}
    todo = list(Operator.__subclasses__())
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo += cls.__subclasses__()
    return found


def known_modules() -> tuple[type, ...]:
    """Module classes that have a spelling; the tracer keeps such modules whole."""
    _discover()
    return tuple(t for t in _spellings if isinstance(t, type) and issubclass(t, nn.Module))


def pair(value: Any) -> tuple[int, int]:
    """(height, width) from a number or a sequence of one or two, as torch reads kernel sizes and strides."""
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def constant(value: Any, what: str) -> Any:
    """A value that must be known at conversion, not computed in every frame."""
    if isinstance(value, torch.fx.Node):
        raise StaysDense(f"{what} is computed in every frame")
    return value
