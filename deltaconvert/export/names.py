"""What the inputs and outputs of an exported graph are called."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx


@dataclass
class State:
    """One stored map: its node, its names in the ONNX graph, its shape N H W C there."""

    node: fx.Node
    name: str

    @property
    def input(self) -> str:
        return f"{self.name}.state"

    @property
    def output(self) -> str:
        return f"{self.name}.state_out"

    @property
    def shape(self) -> tuple[int, ...]:
        n, channels, height, width = self.node.meta["shape"]
        return n, height, width, channels


@dataclass
class Names:
    """frames: by placeholder. outputs: of the flat output tensors, in order."""

    frames: dict[fx.Node, str]
    outputs: list[str]
    states: dict[fx.Node, State] = field(default_factory=dict)
