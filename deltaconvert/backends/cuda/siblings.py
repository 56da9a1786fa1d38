"""Independent depthwise convolutions in one launch: branches of blocks, pyramids and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx

from deltaconvert.backends.cuda.concats import note_of
from deltaconvert.backends.cuda.depthwise import is_depthwise
from deltaconvert.backends.cuda.launches import Together
from deltaconvert.nodes import operator_of
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import stages_of
from deltaconvert.ops.pointwise import Pointwise

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.steps import Step


def note_siblings(gm: fx.GraphModule) -> fx.GraphModule:
    """Move independent depthwise convolutions of one form next to each other, and note how many they are.

    before:  a = depthwise(x);  y = conv1x1(a);  b = depthwise(x);  z = conv1x1(b)
    after:   a = depthwise(x);  b = depthwise(x);  y = conv1x1(a);  z = conv1x1(b),
             with a.meta["cuda"]["together"] = b.meta["cuda"]["together"] = ("a", 2)
    """
    groups: list[list[fx.Node]] = []
    for node in list(gm.graph.nodes):
        form = _form_of(node)
        if form is not None and not any(
            _form_of(group[0]) == form and _joins(group, node) for group in groups
        ):
            groups.append([node])
    for group in groups:
        for node in group:
            if len(group) > 1:
                note_of(node)["together"] = (group[0].name, len(group))
    return gm


def _form_of(node: fx.Node) -> tuple[Any, ...] | None:
    """What the convolutions of a launch have in common; None for a node that is launched by itself."""
    operator = operator_of(node) if node.meta.get("delta") else None
    if operator is None or "threshold" in node.meta:
        return None
    conv, *tail = stages_of(operator)
    if not isinstance(conv, Conv2d) or not is_depthwise(conv) or len(node.args) > 1:
        return None
    if not all(isinstance(stage, Pointwise) for stage in tail):
        return None
    (source,) = node.all_input_nodes
    geometry = tuple(conv.weight.shape), conv.stride, conv.padding, conv.dilation
    behind = [stage.settings() for stage in tail]
    return geometry, behind, node.meta["dtype"], source.meta["shape"], bool(source.meta.get("narrow"))


def _joins(group: list[fx.Node], node: fx.Node) -> bool:
    """Move the node to the end of the group, or the group before the node, if their inputs and readers allow that."""
    place = {other: i for i, other in enumerate(node.graph.nodes)}
    if all(place[source] < place[group[0]] for source in node.all_input_nodes):
        group[-1].append(node)
    elif all(place[node] < place[user] for member in group for user in member.users):
        for member in group:
            node.prepend(member)
    else:
        return False
    group.append(node)
    return True


class Siblings:
    """Steps that may be one launch, made by the last of them. A step that turns out to have other pixels or another
    kernel is launched by itself."""

    def __init__(self, count: int):
        self._missing = count
        self._steps: list[Step] = []
        self._launches: list[Callable[[], None]] = []

    def add(self, step: Step) -> None:
        self._steps.append(step)
        self._missing -= 1
        if self._missing == 0:
            self._launches = [_launch_of(steps) for steps in self._parts()]

    def _parts(self) -> list[list[Step]]:
        parts: dict[Any, list[Step]] = {}
        for step in self._steps:
            form = step if step.launch is None else step.launch.form
            parts.setdefault((id(step.candidates), form), []).append(step)
        return list(parts.values())

    def run(self, step: Step) -> None:
        if step is self._steps[-1]:
            for launch in self._launches:
                launch()


def _launch_of(steps: Sequence[Step]) -> Callable[[], None]:
    first, *others = steps
    launches = [step.launch for step in steps if step.launch is not None]
    return partial(Together(launches), first.candidates) if others else first.run_alone
