"""A tile of a network's outputs, and the part of the frame that it depends on: the reaches say which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.metrics import apart
from deltaconvert.nodes import densify, is_delta, operator_of, sparsify
from deltaconvert.passes.place_thresholds import is_of_frame
from deltaconvert.plan import Plan
from deltaconvert.reach import Box, Reach, Span

ALIKE = 1e-3  # of the largest output: how far a part of a frame may be from the whole frame's result there


@dataclass(frozen=True)
class Part:
    """What a look computes again.

    box: the part of the frame to run the network on; None is the whole frame, and all outputs are compared.
    maps: for each output its place, the tile in the running network's output, and the tile in the box's output.
    share: of the frame's pixels that are in the box.
    """

    box: Box | None
    maps: list[tuple[int, Box, Box]]
    share: float

    def compare(self, dense: fx.GraphModule, frames: Sequence[Tensor], outputs: Sequence[Any]) -> Tensor:
        """(3): squares of the difference, of the dense values, and the largest difference."""
        theirs = list(dense(*(_cut(frame, self.box) for frame in frames)))
        if self.box is None:
            pairs = [
                (a, b) for a, b in zip(outputs, theirs, strict=True) if isinstance(b, Tensor) and b.numel()
            ]
        else:
            pairs = [(_cut(outputs[place], ours), _cut(theirs[place], own)) for place, ours, own in self.maps]
        found = []
        for a, b in pairs:
            if a.shape != b.shape:  # lists of boxes, of which one has more
                far = torch.full((3,), math.inf, dtype=torch.float64, device=b.device)
                far[1] = 0  # of the dense values, which are summed up as well
                found.append(far)
                continue
            found.append(apart(a, b))
        if not found:
            return torch.zeros(3, dtype=torch.float64, device=frames[0].device)
        both = torch.stack(found)
        return torch.cat([both[:, :2].sum(0), both[:, 2].max()[None]])


class View:
    """Which part of a frame a tile of the outputs depends on, for one plan."""

    def __init__(self, plan: Plan, dense: fx.GraphModule, frames: Sequence[Tensor]):
        self._whole = Part(None, [], 1.0)
        self._plan, self._size = plan, (0, 0)
        self._maps: list[tuple[int, fx.Node]] = []
        self._stride: dict[fx.Node, tuple[Fraction, Fraction]] = {}
        self._reaches = {node: _reaches(node) for node in plan.graph.graph.nodes if is_delta(node)}
        if all(frame.dim() == 4 for frame in frames) and len({frame.shape[2:] for frame in frames}) == 1:
            self._size = (frames[0].shape[2], frames[0].shape[3])
            self._maps = self._outputs()
        if self._maps and not self._holds(dense, frames):
            self.give_up()

    def give_up(self) -> Part:
        """Look at the whole frame from now on."""
        self._maps = []
        return self._whole

    def part(self, at: tuple[float, float], tile: int) -> Part:
        """at: the tile's place, each from 0 to 1."""
        if not self._maps:
            return self._whole
        spans = []
        for place, size in zip(at, self._size, strict=True):
            side = min(tile, size)
            first = int(place * (size - side + 1))
            spans.append((first, first + side))
        wanted: dict[fx.Node, Box] = {}
        tiles = []
        for place, node in self._maps:
            box = _both(
                _scaled(span, stride, limit)
                for span, stride, limit in zip(spans, self._stride[node], node.meta["shape"][2:], strict=True)
            )
            tiles.append((place, node, box))
            wanted[node] = _joined(wanted.get(node), box)
        needed = self._needed(wanted)
        if needed is None:
            return self._whole
        steps = [math.lcm(*(stride[axis].numerator for stride in self._stride.values())) for axis in (0, 1)]
        box = _both(
            (span[0] // step * step, min(-(-span[1] // step) * step, size))
            for span, step, size in zip(needed, steps, self._size, strict=True)
        )
        maps = []
        for place, node, ours in tiles:
            starts = [int(box[axis][0] / self._stride[node][axis]) for axis in (0, 1)]
            own = _both((span[0] - start, span[1] - start) for span, start in zip(ours, starts, strict=True))
            maps.append((place, ours, own))
        area = math.prod(stop - start for start, stop in box) / math.prod(self._size)
        return Part(box, maps, area) if area < 1 else self._whole

    def _outputs(self) -> list[tuple[int, fx.Node]]:
        """The outputs, which all have to be maps whose reaches are known; else nothing. Notes the strides of all
        nodes."""
        nodes = self._plan.graph.graph.nodes
        (output,) = (node for node in nodes if node.op == "output")
        for node in nodes:
            stride = self._stride_of(node)
            if stride is not None:
                self._stride[node] = stride
        found = []
        for place, value in enumerate(output.args[0]):
            source = value.args[0] if isinstance(value, fx.Node) and value.target is densify else None
            if not isinstance(source, fx.Node) or source not in self._stride:
                return []
            found.append((place, source))
        return found

    def _stride_of(self, node: fx.Node) -> tuple[Fraction, Fraction] | None:
        """Pixels of the frame to a pixel of the node's map; None where that is not one number."""
        if node.target is sparsify:
            return (Fraction(1), Fraction(1)) if is_of_frame(node.all_input_nodes[0]) else None
        if node not in self._reaches:
            return None
        shape = node.meta["shape"][2:]
        found = set()
        for source, _ in self._reaches[node]:
            if source not in self._stride:
                return None
            ratios = [_ratio(*sizes) for sizes in zip(source.meta["shape"][2:], shape, strict=True)]
            down, right = self._stride[source]
            found.add((down * ratios[0], right * ratios[1]))
        return found.pop() if len(found) == 1 else None

    def _needed(self, wanted: dict[fx.Node, Box]) -> Box | None:
        """The box of the frames that boxes of maps depend on."""
        needed: Box | None = None
        for node in reversed(list(self._reaches)):
            if node not in wanted:
                continue
            if node.target is sparsify:
                needed = _joined(needed, wanted[node])
            for source, reach in self._reaches[node]:
                box = reach.reads(wanted[node])
                if box is None:
                    return None
                wanted[source] = _joined(wanted.get(source), box)
        return needed

    def _holds(self, dense: fx.GraphModule, frames: Sequence[Tensor]) -> bool:
        """Whether a part of a frame gives what the whole frame gives there. It does not where a network computes with
        coordinates that depend on the frame's size. Tried once; it waits for the device."""
        draw = torch.Generator(device="cpu").manual_seed(0)
        levels = [1 if frame.is_floating_point() else 256 for frame in frames]
        noise = [
            (torch.rand(frame.shape, generator=draw, device="cpu") * level).to(frame.device, frame.dtype)
            for frame, level in zip(frames, levels, strict=True)
        ]
        try:
            whole = list(dense(*noise))
            allowed = ALIKE * max(float(output.abs().max()) for output in whole)
            for at in ((0.0, 0.0), (0.45, 0.55), (0.999, 0.999)):
                part = self.part(at, 1)
                if part.box is not None and not float(part.compare(dense, noise, whole)[2]) <= allowed:
                    return False
        except Exception:  # a network that takes this one size alone
            return False
        return True


def _reaches(node: fx.Node) -> list[tuple[fx.Node, Reach]]:
    """The deltas that a delta node reads, and how."""
    operator = operator_of(node)
    if operator is None:  # a sparsify
        return []
    sources: list[Any] = list(node.args)  # a node may be read twice
    reaches = operator.reaches([source.meta["shape"] for source in sources], node.meta["shape"])
    return list(zip(sources, reaches, strict=True))


def _ratio(theirs: int, ours: int) -> Fraction:
    """How many of their pixels make one of ours: a whole number, or one by a whole number."""
    times = round(max(theirs, ours) / max(min(theirs, ours), 1))
    return Fraction(times) if theirs >= ours else Fraction(1, times)


def _scaled(span: Span, stride: Fraction, limit: int) -> Span:
    """Pixels of the frame as pixels of a map, one at least."""
    first = min(math.floor(span[0] / stride), limit - 1)
    return first, max(first + 1, min(math.ceil(span[1] / stride), limit))


def _joined(a: Box | None, b: Box) -> Box:
    if a is None:
        return b
    return _both((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _both(spans: Any) -> Box:
    rows, columns = spans
    return rows, columns


def _cut(x: Tensor, box: Box | None) -> Tensor:
    return x if box is None else x[:, :, slice(*box[0]), slice(*box[1])]
