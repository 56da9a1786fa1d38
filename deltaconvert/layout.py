"""Where the values of a map stand in a tensor of another shape: N H W C, tokens N (H W) C, heads N C.

The axes of a map N C H W are factored into atoms, the atoms put in order, groups of them merged into dimensions. A
reshape splits and merges atoms, a permute reorders dimensions; both are exact, and so is comparing two layouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Atom(NamedTuple):
    """`size` places of a map's axis (0 to 3 for N C H W) that lie `step` apart."""

    axis: int
    step: int
    size: int


Dim = tuple[Atom, ...]


@dataclass(frozen=True)
class Layout:
    """size: of the map, N C H W. dims: the atoms of each dimension, the slowest first; none where it has length 1."""

    size: Shape
    dims: tuple[Dim, ...]

    @classmethod
    def of(cls, size: Sequence[int]) -> Layout:
        """The map's own."""
        return cls(tuple(size), tuple(_joined([Atom(axis, 1, length)]) for axis, length in enumerate(size)))

    @property
    def shape(self) -> Shape:
        return tuple(math.prod(atom.size for atom in dim) for dim in self.dims)

    @property
    def is_plain(self) -> bool:
        return self == Layout.of(self.size)

    def reshape(self, shape: Sequence[int]) -> Layout | None:
        """None where a dimension would take parts of an atom that are no factor of it."""
        atoms = [atom for dim in self.dims for atom in dim]
        dims = []
        for length in shape:
            dim = []
            while length > 1 and atoms:
                axis, step, size = atoms.pop(0)
                taken = math.gcd(length, size)
                if taken not in (length, size):
                    return None
                dim.append(Atom(axis, step * (size // taken), taken))
                if taken < size:
                    atoms.insert(0, Atom(axis, step, size // taken))
                length //= taken
            dims.append(_joined(dim))
        return Layout(self.size, tuple(dims))

    def ending_in_channels(self, size: Sequence[int]) -> Layout:
        """The last dimension replaced by the channels of a map of `size`."""
        return Layout(tuple(size), (*self.dims[:-1], _joined([Atom(1, 1, size[1])])))

    def with_axis(self, dim: int, axis: int, length: int) -> Layout | None:
        """The layout of a map whose `axis` has another length; None where dimension `dim` is not that axis, whole and
        in order."""
        if not self.in_order(self.dims[dim], axis):
            return None
        size = (*self.size[:axis], length, *self.size[axis + 1 :])
        return Layout(size, (*self.dims[:dim], _joined([Atom(axis, 1, length)]), *self.dims[dim + 1 :]))

    def permute(self, order: Sequence[int]) -> Layout:
        return Layout(self.size, tuple(self.dims[place] for place in order))

    def holds(self, dim: Dim, axes: Iterable[int]) -> bool:
        """`dim` is made of these axes, whole, and of nothing else; in any order."""
        wanted, axes = math.prod(self.size[axis] for axis in axes), tuple(axes)
        return all(atom.axis in axes for atom in dim) and math.prod(atom.size for atom in dim) == wanted

    def in_order(self, dim: Dim, axis: int) -> bool:
        """`dim` is this axis, as it runs on the map."""
        return dim == _joined([Atom(axis, 1, self.size[axis])])

    def select(self, dim: int, index: int) -> tuple[list[int], Layout] | None:
        """Place `index` of dimension `dim`, which keeps length 1: the channels of the map that it holds, and how
        the map of these is laid out. None where the dimension holds more than channels."""
        if any(atom.axis != 1 for atom in self.dims[dim]):
            return None
        first, left = 0, index % self.shape[dim]
        for atom in reversed(self.dims[dim]):
            first, left = first + left % atom.size * atom.step, left // atom.size
        return self._of_channels(first, dim, ())

    def narrow(self, dim: int, places: range) -> tuple[list[int], Layout] | None:
        """Some places of dimension `dim`, as select has one. None where it is not one atom of channels."""
        if len(self.dims[dim]) != 1 or self.dims[dim][0].axis != 1:
            return None
        ((_, step, _),) = self.dims[dim]
        return self._of_channels(
            places.start * step, dim, _joined([Atom(1, step * places.step, len(places))])
        )

    def _of_channels(self, first: int, dim: int, left: Dim) -> tuple[list[int], Layout]:
        """The channels that are there where `left` is left of dimension `dim`, from `first` on; their map's layout."""
        others = [*self.dims[:dim], left, *self.dims[dim + 1 :]]
        kept = sorted((atom.step, atom.size) for each in others for atom in each if atom.axis == 1)
        channels, steps = [first], {}
        for step, size in kept:
            steps[step] = len(channels)
            channels = [channel + place * step for place in range(size) for channel in channels]
        dims = [
            _joined(Atom(1, steps[a.step], a.size) if a.axis == 1 else a for a in each) for each in others
        ]
        n, _, height, width = self.size
        return channels, Layout((n, len(channels), height, width), tuple(dims))

    def pooled(self, dims: Sequence[int], keepdim: bool) -> tuple[tuple[int, ...], Layout] | None:
        """Where the dimensions `dims` are made of height, of width or of both: which of these, and what is left when
        they have length 1."""
        taken = tuple(atom for dim in dims for atom in self.dims[dim])
        axes = next((axes for axes in ((2, 3), (2,), (3,)) if self.holds(taken, axes)), None)
        if axes is None:
            return None
        kept = (
            () if place in dims else dim
            for place, dim in enumerate(self.dims)
            if keepdim or place not in dims
        )
        size = tuple(1 if axis in axes else length for axis, length in enumerate(self.size))
        return axes, Layout(size, tuple(kept))

    def without_channels(self) -> Layout:
        """The same layout of a map of one channel."""
        n, _, height, width = self.size
        dims = tuple(tuple(atom for atom in dim if atom.axis != 1) for dim in self.dims)
        return Layout((n, 1, height, width), tuple(map(_joined, dims)))

    def lay(self, x: Tensor) -> Tensor:
        """A map -> the tensor that holds it in this layout."""
        atoms = self.atoms
        order = [atoms.index(atom) for dim in self.dims for atom in dim]
        return x.reshape([atom.size for atom in atoms]).permute(order).reshape(self.shape)

    def map_of(self, x: Tensor) -> Tensor:
        """A tensor in this layout -> its map."""
        given = [atom for dim in self.dims for atom in dim]
        order = [given.index(atom) for atom in self.atoms]
        return x.reshape([atom.size for atom in given]).permute(order).reshape(self.size)

    def spread_out(self, constant: Tensor) -> Tensor | None:
        """A constant that broadcasts to tensors in this layout -> one that broadcasts to their maps."""
        if constant.dim() == 0:
            return constant
        try:
            if torch.broadcast_shapes(constant.shape, self.shape) != self.shape:
                return None
        except RuntimeError:
            return None
        spread = self.map_of(constant.expand(self.shape))
        for axis, stride in enumerate(spread.stride()):
            spread = spread.narrow(axis, 0, 1) if stride == 0 else spread
        return spread

    def keeping(self, shape: Sequence[int]) -> Layout | None:
        """What a tensor of `shape` is likely laid out like that was made of one in this layout; None where neither the
        shape nor N H W C tells."""
        if tuple(shape) == self.shape:
            return self
        last = (0, 2, 3, 1)
        if len(shape) != 4 or self != Layout.of(self.size).permute(last) or shape[0] != self.size[0]:
            return None
        return Layout.of([shape[axis] for axis in (0, 3, 1, 2)]).permute(last)

    def boxes(self, factor: int) -> tuple[Dim, Dim] | None:
        """Rows and columns of boxes of factor x factor pixels; None where they do not fill the map."""
        height, width = self.size[2:]
        if factor < 1 or height % factor or width % factor:
            return None
        return _joined([Atom(2, factor, height // factor)]), _joined([Atom(3, factor, width // factor)])

    def broadcasts_to(self, larger: Layout) -> bool:
        """Broadcasting one tensor to the other broadcasts their maps."""
        short = {axis for axis in range(4) if self.size[axis] == 1}
        if any(self.size[axis] != larger.size[axis] for axis in set(range(4)) - short):
            return False
        return self.dims == tuple(tuple(a for a in dim if a.axis not in short) for dim in larger.dims)

    @property
    def atoms(self) -> list[Atom]:
        """In the order in which the map holds them."""
        return sorted((atom for dim in self.dims for atom in dim), key=lambda atom: (atom.axis, -atom.step))


def apart_from(value: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The value, copied if it stands in the memory of one of the others."""
    return value.clone() if memory_of(value) in map(memory_of, others) else value


def memory_of(x: Tensor) -> int:
    """The address of the memory that a tensor and its views share."""
    return x.untyped_storage().data_ptr()


def _joined(atoms: Iterable[Atom]) -> Dim:
    """Neighbours that follow one another on the map become one atom, atoms of one place none: the one form of each."""
    joined: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        if joined and joined[-1].axis == atom.axis and joined[-1].step == atom.step * atom.size:
            atom = Atom(atom.axis, atom.step, joined.pop().size * atom.size)
        joined.append(atom)
    return tuple(joined)
