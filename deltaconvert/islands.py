"""The dense steps of a frame, islands between delta nodes, and the values they hand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from deltaconvert.nodes import densify, is_random, name_called, operator_of, sparsify
from deltaconvert.passes.functionalise import may_share

# Their functions give the same result for the same inputs, but for random ones.
_PURE_HOMES = (
    "torch",
    "_operator",
    "operator",
    "math",
    "torch.nn.functional",
    "torch._C._nn",
    "torch._C._special",
    "deltaconvert.ops.put",
)


@dataclass
class Step:
    """What one node does in a frame. edge: of a sparsify, the edge that the frame enters by."""

    node: fx.Node
    run: Callable[[Frame], None]
    island: Island | None = None
    edge: Any = None

    def __call__(self, frame: Frame) -> None:
        self.run(frame)


@dataclass
class Frame:
    """The dense values of one frame, and whether each can differ from the last frame's."""

    values: list[Any]
    changed: list[bool]

    def put(self, slot: int, value: Any, changed: bool) -> None:
        self.values[slot], self.changed[slot] = value, changed


class Island:
    """A dense step. A pure one whose inputs did not change hands out its last result."""

    def __init__(
        self,
        slot: int,
        call: Callable[[list[Any]], Any],
        sources: tuple[int, ...],
        pure: bool,
        edge: Any = None,
    ):
        self.slot, self.call, self.sources, self.pure, self.edge = slot, call, sources, pure, edge
        self.kept = self.ran = False
        self.forget()

    def run(self, frame: Frame) -> None:
        changed = self.edge.changed if self.edge is not None else any(frame.changed[s] for s in self.sources)
        self.ran = changed or not (self.kept and self.pure)
        if self.ran:
            self.last, self.kept = self.call(frame.values), True
        frame.put(self.slot, self.last, self.ran)

    def forget(self) -> None:
        self.kept, self.ran, self.last = False, False, None


def is_pure(node: fx.Node) -> bool:
    """The same inputs give the same result, and nothing else happens: functions, methods and operators of torch."""
    if operator_of(node) is not None:
        return True
    if node.op == "call_module" or not node.all_input_nodes:
        return False
    name = name_called(node)
    if name.endswith("_") or is_random(name):
        return False
    return node.op == "call_method" or getattr(node.target, "__module__", None) in (
        *_PURE_HOMES,
        None,
        "torch.functional",
    )


def is_read_behind(node: fx.Node) -> bool:
    """Something behind `node` reads one of its inputs, or what may share memory with one: it would see a write."""
    place = {each: i for i, each in enumerate(node.graph.nodes)}
    todo, sharing = list(node.all_input_nodes), set()
    while todo:
        value = todo.pop()
        if value in sharing:
            continue
        sharing.add(value)
        todo += value.all_input_nodes[:1] if _hands_on(value) else []
        users = (user for user in value.users if user is not node and user.all_input_nodes[:1] == [value])
        todo += [user for user in users if _hands_on(user)]
    readers = {user for value in sharing for user in value.users} - sharing
    return any(place[reader] > place[node] for reader in readers)


def _hands_on(node: fx.Node) -> bool:
    return node.target in (densify, sparsify) or may_share(node)
