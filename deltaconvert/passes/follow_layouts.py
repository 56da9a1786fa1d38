"""Maps in other layouts: operators on N H W C, on tokens N (H W) C and on N C work on the map N C H W itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from deltaconvert.layout import Atom, Layout
from deltaconvert.nodes import names_of, operator_of
from deltaconvert.ops.base import Operator
from deltaconvert.ops.channels import ChannelIndex
from deltaconvert.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from deltaconvert.ops.rearrange import MapOf, Rearrange
from deltaconvert.passes.adopt_operators import adopt
from deltaconvert.passes.decide import Seen, seen, why_dense
from deltaconvert.passes.views import kind_of, order_of, place_taken, places_taken
from deltaconvert.thresholds import matches


def follow_layouts(
    streams: int, keep_dense: Sequence[str] = ()
) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A pass that follows each map through reshapes and permutes, and moves the operators behind them onto the map.

    What comes back to N C H W is the map again, a channel index or a pixel shuffle. Where something reads another
    layout, the map is rearranged right before it. A dense call is likely to keep the layout of what it reads, as the
    attention of windows does: where operators can follow it on the map, it is made a map again.

    before:  t = permute(x, (0, 2, 3, 1));  l = linear(norm(t));  y = permute(l, (0, 3, 1, 2));  z = add(x, y)
    after:   z = add(x, conv1x1(channel_norm(x)))

    before:  w = permute(x, (0, 2, 3, 1));  y = linear(attention(linear(w)));  z = permute(y, (0, 3, 1, 2))
    after:   z = conv1x1(map_of(attention(rearrange(conv1x1(x)))))
    """

    def follow_layouts(gm: fx.GraphModule) -> fx.GraphModule:
        walk = _Walk(gm, streams, keep_dense)
        for node in list(gm.graph.nodes):
            walk.visit(node)
        gm.graph.eliminate_dead_code()
        return gm

    return follow_layouts


class _Walk:
    """One walk over the graph.

    held: for each value that is a map in some layout, the map and the layout.
    moved: the nodes that became maps.
    likely: the most likely layout of values that dense calls made of such maps. A wrong guess is still exact: it only
        puts pixels together that change at different times.
    """

    def __init__(self, gm: fx.GraphModule, streams: int, keep_dense: Sequence[str]):
        self.gm, self.streams, self.keep_dense = gm, streams, keep_dense
        self.held: dict[fx.Node, tuple[fx.Node, Layout]] = {}
        self.moved: set[fx.Node] = set()
        self.likely: dict[fx.Node, Layout] = {}
        self.maps: dict[fx.Node, fx.Node] = {}  # of the values in `likely` that operators follow
        self.values: dict[fx.Node, fx.Node] = {}

    def visit(self, node: fx.Node) -> None:
        if not (self._follow(node) or self._take(node) or self._move(node)):
            self._expect(node)
            for source in node.all_input_nodes:
                if source in self.held:
                    node.replace_input_with(source, self._value(source, node))

    def _follow(self, node: fx.Node) -> bool:
        """A reshape or a permute of a map: the same map in another layout."""
        kind, source = kind_of(node), node.args[0] if node.args else None
        if kind is None or not isinstance(source, fx.Node):
            return False
        held = self._held(source)
        if held is None or node.meta.get("dtype") != source.meta.get("dtype"):
            return False
        layout = held[1]
        permuted = kind == "permute"
        found = layout.permute(order_of(node)) if permuted else layout.reshape(node.meta["shape"])
        if found is not None:
            self.held[node] = held[0], found
        return found is not None

    def _take(self, node: fx.Node) -> bool:
        """An index or a slice of a dimension made of channels, as in shuffles and attention, takes these channels of
        the map.

        before:  t = reshape(permute(reshape(x, 2 C | H W), ...), 2 | C H W);  y = t[0]
        after:   y = x[:, [0, 2, 4, ...]]

        before:  t = transpose(reshape(x, N H W | heads | 3 C), 1, 2);  q = t[..., :C]
        after:   q = x[:, [0, 1, ..., 3 C, 3 C + 1, ...]]
        """
        held = self.held.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if held is None or node.meta.get("shape") is None:
            return False
        found = self._taken(node, held[1])
        if found is None or any(matches(pattern, names_of(node)) for pattern in self.keep_dense):
            return False
        channels, taken = found
        layout = taken.reshape(node.meta["shape"])
        if layout is None:
            return False
        call = adopt(self.gm, node, ChannelIndex(torch.tensor(channels)), [held[0]])
        call.meta["shape"] = taken.size
        self.held[call] = call, layout
        self.moved.add(call)
        return True

    def _taken(self, node: fx.Node, layout: Layout) -> tuple[list[int], Layout] | None:
        """The channels, and how they are laid out. Slices of all channels in order are left to operators."""
        place, places = place_taken(self.gm, node), places_taken(node)
        if place is not None:
            return layout.select(*place)
        if places is None or layout.in_order(layout.dims[places[0]], 1):
            return None
        return layout.narrow(*places)

    def _move(self, node: fx.Node) -> bool:
        """Replace an operator by its equivalent on maps, if that can be a delta node."""
        operator = operator_of(node)
        held = (
            [self._held(source) or self._expected(source, node) for source in node.args] if operator else []
        )
        sources = [each for each in held if each is not None]
        if operator is None or len(sources) < len(node.args) or "dtype" not in node.meta:
            return False
        maps, layouts = [source for source, _ in sources], [layout for _, layout in sources]
        if any(matches(pattern, names_of(node)) for pattern in self.keep_dense):
            return False
        given = [seen(source)._replace(shape=each.shape) for source, each in zip(maps, layouts, strict=True)]
        found = operator.on_maps(layouts)
        if why_dense(operator, given, seen(node), self.streams) is None:
            # It can be a delta node where it is. Moving it pays only if a layout change lies between it and a delta
            # node, or if it reads a dense value in a layout whose rows are no rows of pixels.
            stays = all(_as_operators(layout) is not None for layout in layouts)
            dense = any(self._held(source) is None for source in node.args)
            # A mean of N H W C's last dimension is one of width where it is, and one of channels on the map.
            is_same = found is None or type(found[0]) is type(operator)
            if is_same and (stays or not (dense or any(map(self._is_delta, maps)))):
                return False
        if found is None:
            return len(sources) == 1 and self._gather(node.args[0]) and self._move(node)
        moved, layout = found
        inputs = [seen(source)._replace(shape=each.size) for source, each in zip(maps, layouts, strict=True)]
        output = Seen("", layout.size, node.meta["dtype"], delta=True)
        if why_dense(moved, inputs, output, self.streams) is not None:
            return False
        maps = [
            source if self._held(own) else self._map(own, layout)
            for own, source, layout in zip(node.args, maps, layouts, strict=True)
        ]
        call = adopt(self.gm, node, moved, maps)
        call.meta["shape"] = layout.size
        self.held[call] = call, layout
        self.moved.add(call)
        return True

    def _gather(self, node: fx.Node) -> bool:
        """A value N H W C whose channels come from boxes of pixels, as in patch merging, becomes a map of its own.

        before:  t = flatten(permute(reshape(x, N C H 2 W 2), N H W 2 2 C), 3)
        after:   t = permute(pixel_unshuffle(x)[:, [0, 4, 1, 5, ...]], N H W C)
        """
        if node not in self.held or len(self.held[node][1].dims) != 4:
            return False
        source, layout = self.held[node]
        operators = _as_operators(layout.permute((0, 3, 1, 2)))
        if not operators:
            return False
        for each in operators:
            source = self._insert(each, source, node)
        self.held[node] = source, Layout.of(source.meta["shape"]).permute((0, 2, 3, 1))
        self.moved.add(source)
        return True

    def _held(self, node: fx.Node) -> tuple[fx.Node, Layout] | None:
        """The map behind a value, and its layout. A frame and the result of a delta node are maps themselves."""
        if node in self.held:
            return self.held[node]
        shape, dtype = node.meta.get("shape"), node.meta.get("dtype")
        if shape is None or len(shape) != 4 or shape[0] != self.streams or 0 in shape:
            return None
        if dtype.is_floating_point and (node.op == "placeholder" or self._is_delta(node)):
            return node, Layout.of(shape)
        return None

    def _expect(self, node: fx.Node) -> None:
        """Note the likely layout of a dense value that is made of maps in other layouts."""
        kind, shape = kind_of(node), node.meta.get("shape")
        if shape is None or not node.meta["dtype"].is_floating_point or self._held(node) is not None:
            return
        for source in node.all_input_nodes:
            held = self.held.get(source)
            layout = self.likely.get(source) if held is None else held[1]
            if layout is None or layout.is_plain:
                continue
            if kind is None:
                found = layout.keeping(shape)
            elif held is None:
                found = layout.permute(order_of(node)) if kind == "permute" else layout.reshape(shape)
            else:
                found = None  # no layout followed it
            if found is not None:
                self.likely[node] = found

    def _expected(self, node: fx.Node, reader: fx.Node) -> tuple[fx.Node, Layout] | None:
        """A dense value and its likely layout: the one noted, or that of a map which `reader` takes beside it."""
        layout = self.likely.get(node)
        if layout is None and node.meta.get("shape") is not None and not node.meta.get("is_constant"):
            beside = [self.held[other][1] for other in reader.args if other in self.held]
            layout = next((each for each in beside if each.shape == node.meta["shape"]), None)
        return None if layout is None else (node, layout)

    def _map(self, node: fx.Node, layout: Layout) -> fx.Node:
        """The dense value, which has this layout, as a map."""
        if node not in self.maps:
            self.likely[node] = layout
            self.maps[node] = self._insert(MapOf(layout.size, layout.dims), node, node)
        return self.maps[node]

    def _is_delta(self, node: fx.Node) -> bool:
        operator = operator_of(node)
        if operator is None:
            return False
        return why_dense(operator, list(map(seen, node.args)), seen(node), self.streams) is None

    def _value(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The node whose result is what `node` was in the dense network."""
        if node in self.values:
            return self.values[node]
        source, layout = self.held[node]
        views, before = [], node
        while before is not source and before in self.held:
            views.append(before)
            before = before.args[0]  # type: ignore[assignment]
        operators = _as_operators(layout)
        if operators is None and source not in self.moved:
            value = node  # the network's own calls stay
            for view in views:
                if operator_of(view) is None:
                    view.meta["why_dense"] = f"it makes the layout that {names_of(reader)[0]} reads"
        else:
            value = source
            for operator in [Rearrange(layout.size, layout.dims)] if operators is None else operators:
                value = self._insert(operator, value, node)
            if node is not source and value is not source:
                self._replace(node, value, views)
        self.values[node] = value
        return value

    def _insert(self, operator: Operator, source: fx.Node, like: fx.Node) -> fx.Node:
        """A call of `operator` on `source`, whose result holds the same values as `like`."""
        held = self.held.get(like, (source,))[0]
        with self.gm.graph.inserting_after(like if source is held else source):
            place = self.gm.graph.call_function(_laid_out, (source,))
        shape = tuple(operator(torch.empty(source.meta["shape"], dtype=torch.bool)).shape)
        path = f"{type(operator).__name__.lower()}({names_of(like)[0]})"
        place.meta = {**like.meta, "shape": shape, "path": path, "parts": names_of(like)}
        return adopt(self.gm, place, operator, [source])

    def _replace(self, view: fx.Node, value: fx.Node, views: Sequence[fx.Node]) -> None:
        """`value` takes the place and the path of `view`, the last of `views`."""
        names = [name for each in reversed(views) for name in names_of(each)]
        value.meta.update(path=names_of(view)[0], parts=names)
        view.replace_all_uses_with(value)
        self.held[value] = self.held[view]
        self.values[value] = value


def _laid_out(x: Tensor) -> Tensor:
    """A placeholder in the graph until an operator takes its place."""
    return x


def _as_operators(layout: Layout) -> list[Operator] | None:
    """The delta operators that give a map this layout: none if it is the map's own, None if operators cannot."""
    if len(layout.dims) != 4 or not layout.in_order(layout.dims[0], 0):
        return None
    _, channels, height, width = layout.size
    own = Layout.of(layout.size)
    _, inner, rows, cols = layout.dims
    if (rows, cols) == own.dims[2:]:
        return _indexed(inner, channels)
    factor = layout.shape[2] // height
    down, right = rows[len(own.dims[2]) :], cols[len(own.dims[3]) :]
    if (
        layout.shape[2:] == (height * factor, width * factor)
        and (rows, cols) == (own.dims[2] + down, own.dims[3] + right)
        and all(atom.axis == 1 for atom in (*down, *right))
    ):
        return [*_indexed((*inner, *down, *right), channels), PixelShuffle(factor)]
    factor = height // layout.shape[2]
    if (rows, cols) == layout.boxes(factor):
        # Pixel unshuffle makes channels of (C, row within the box, column within the box), the last one the fastest.
        scale = {1: factor * factor, 2: factor, 3: 1}
        order = [Atom(1, step * scale[axis], size) for axis, step, size in inner]
        return [PixelUnshuffle(factor), *_indexed(order, channels * factor * factor)]
    return None


def _indexed(order: Sequence[Atom], channels: int) -> list[Operator]:
    """The channels in another order: one operator, or none."""
    index = Layout((1, channels, 1, 1), (tuple(order),)).lay(torch.arange(channels))
    return [] if bool((index == torch.arange(channels)).all()) else [ChannelIndex(index)]
