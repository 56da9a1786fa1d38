"""What a graph does with the values of frames, apart from what follows from their sizes: to compare two graphs of one
network, where one makes a grid and the other one has it."""

from __future__ import annotations

from typing import Any

from torch import fx

from deltaconvert.nodes import name_called

# What these give follows from the size and type of their first input.
_OF_SIZES = (
    "shape ndim dtype device is_cuda layout size dim ndimension numel len zeros_like ones_like empty_like full_like "
    "new_zeros new_ones new_empty new_full new_tensor"
).split()
_LIKE_ANOTHER = "to type_as expand_as view_as reshape_as".split()  # of the size or type of another
_OPEN = object()  # follows from sizes, or is a tensor of the network

Step = tuple[str, list[Any]]


def same_steps(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Both do the same with the same numbers; what follows from sizes may be a number in one and computed in the
    other."""
    ours, theirs = _steps(a), _steps(b)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(a: Step, b: Step) -> bool:
    (name, read), (other, others) = a, b
    if name != other or len(read) != len(others):
        return False
    pairs = zip(read, others, strict=True)
    return all(x is _OPEN or y is _OPEN or (type(x) is type(y) and x == y) for x, y in pairs)


def _steps(graph: fx.GraphModule) -> list[Step]:
    """Of all that outputs are computed of, the last step first: its name, and its inputs that are no frames."""
    of_frames = _of_frames(graph)
    needed: set[fx.Node] = set()
    found: list[Step] = []
    for node in reversed(graph.graph.nodes):
        is_call_of_frames = node.op == "call_module" and node in of_frames
        if node.op == "output" or is_call_of_frames or node in needed:
            needed.update(of_frames.intersection(_read(node)))
            found.append((_name(node), _given(node, of_frames)))
    return found


def _of_frames(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values follow from those of frames."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or (_name(node) not in _OF_SIZES and not found.isdisjoint(_read(node))):
            found.add(node)
    return found


def _read(node: fx.Node) -> list[fx.Node]:
    is_like_another = node.op == "call_method" and node.target in _LIKE_ANOTHER
    return node.all_input_nodes[:1] if is_like_another else node.all_input_nodes


def _given(node: fx.Node, of_frames: set[fx.Node]) -> list[Any]:
    found: list[Any] = []

    def note(x: Any) -> None:
        found.append(("of frames" if x in of_frames else _OPEN) if isinstance(x, fx.Node) else x)

    fx.node.map_aggregate((node.args, node.kwargs), note)  # into slices too, which may have sizes in them
    return found


def _name(node: fx.Node) -> str:
    if node.target is getattr:
        return str(node.args[1])
    return name_called(node).partition(".")[0] or str(node.target)  # ones_like.default
