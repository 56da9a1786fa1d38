"""How a network is called: whatever its inputs and outputs are nested in, graphs work on flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError


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
    _plain: bool = field(init=False)  # a call takes nothing but tensors, by their place

    def __post_init__(self) -> None:
        flat = pytree.tree_structure(((0,) * self.spec.num_leaves, {}))
        # Not when it is first asked for: that would be while torch.compile looks on, which takes no locks.
        object.__setattr__(self, "_plain", not self.constants and self.spec == flat)

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

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of a call, in order. InputError for a call that is nested otherwise or has other constants."""
        by_place = self._plain and not kwargs and len(args) == self.spec.num_leaves
        if by_place and all(isinstance(arg, Tensor) for arg in args):
            return list(args)  # to flatten them takes 10 us, a tenth of a still frame on a GPU
        leaves, spec = pytree.tree_flatten((tuple(args), kwargs))
        # What a file gave back has a NamedTuple of its own where the network had one of the caller's.
        if spec != self.spec and _skeleton(spec) != _skeleton(self.spec):
            raise InputError(
                f"it is called with {_skeleton(spec)}; the network was converted for "
                f"{_skeleton(self.spec)} (* is a tensor or a constant): call it so, or convert it again on an "
                "example of that form"
            )
        for place, leaf in enumerate(leaves):
            self._check_leaf(place, leaf)
        return [leaf for place, leaf in enumerate(leaves) if place not in self.constants]

    def _check_leaf(self, place: int, leaf: Any) -> None:
        if place not in self.constants:
            if not isinstance(leaf, Tensor):
                way = ": torch.from_numpy(frame)" if type(leaf).__module__ == "numpy" else ""
                raise InputError(
                    f"input {place} is a {type(leaf).__name__}; the network was converted for a tensor there{way}"
                )
        elif isinstance(leaf, Tensor) or leaf != self.constants[place]:
            raise InputError(
                f"input {place} is {leaf!r}; the network was converted for the constant "
                f"{self.constants[place]!r}: convert it once for each value"
            )

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the call that flattens to `tensors`."""
        return _nested(tensors, self.spec, self.constants)

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """The network's output, nested as it returns it."""
        return _nested(tensors, self.out_spec, self.out_constants)


def tensors_of(nested: Any) -> list[Tensor]:
    """The tensors in it, in order, whatever it is nested in."""
    return [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def _nested(tensors: Sequence[Any], spec: pytree.TreeSpec, constants: dict[int, Any]) -> Any:
    values = iter(tensors)
    leaves = [constants[place] if place in constants else next(values) for place in range(spec.num_leaves)]
    return pytree.tree_unflatten(leaves, spec)


def _skeleton(spec: pytree.TreeSpec) -> str:
    """A call as people write it: its nesting, with * for each leaf, as (*, mask=*)."""
    args, kwargs = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    words = [*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())]
    return "({})".format(", ".join(words).replace("'*'", "*"))
