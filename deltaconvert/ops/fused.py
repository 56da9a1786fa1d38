"""An operator with pixelwise operators behind it in one node: convolution, residual add, activation, 1x1 convolution.

Made by the passes fuse_tails and join_pixels; a fused node stores, compares and marks once, at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deltaconvert.ops.base import Operator, Shape
from deltaconvert.reach import Reach, stretched


class Fused(Operator):
    """head(*first inputs), then each tail operator on what came before it and on its own further inputs.

    counts[i]: how many further inputs tail operator i takes; slots[i]: the place of the running value among them.
    """

    def __init__(
        self, stages: Sequence[Operator], counts: Sequence[int], slots: Sequence[int], head_inputs: int
    ):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.counts, self.slots, self.head_inputs = list(counts), list(slots), head_inputs

    @property
    def head(self) -> Operator:
        return self.stages[0]  # type: ignore[return-value]

    def forward(self, *values: Tensor) -> Tensor:
        return self.finish(self.head(*values[: self.head_inputs]), values[self.head_inputs :])

    def finish(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The tail alone, on the head's result."""
        place = 0
        for stage, count, slot in zip(self.stages[1:], self.counts, self.slots, strict=True):
            inputs = list(others[place : place + count])
            inputs.insert(slot, value)
            value, place = stage(*inputs), place + count
        return value

    def macs(self, shapes: Sequence[Shape], out_shape: Shape) -> int:
        head = self.head.macs(shapes[: self.head_inputs], out_shape)
        return head + sum(stage.macs([out_shape], out_shape) for stage in list(self.stages)[1:])  # type: ignore[operator]

    @property
    def activation(self) -> bool:  # type: ignore[override]
        return bool(self.stages[-1].activation)

    @property
    def narrows(self) -> bool:  # type: ignore[override]
        return self.head.narrows

    @property
    def fill(self) -> float:  # type: ignore[override]
        return self.head.fill

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        return all(getattr(stage, "position_free", True) for stage in self.stages)

    def gains(self) -> Tensor | None:
        return self.head.gains()

    def on_windows(self, windows: Tensor) -> Tensor:
        return self.head.on_windows(windows)

    def reaches(self, shapes: Sequence[Shape], out_shape: Shape) -> list[Reach]:
        head = self.head.reaches(shapes[: self.head_inputs], out_shape)
        return [*head, *(stretched(shape, out_shape) for shape in shapes[self.head_inputs :])]

    def extra_repr(self) -> str:
        return ""


def stages_of(operator: Operator) -> list[Operator]:
    """The head and the tail of a fused operator; any other one is a head alone."""
    return list(operator.stages) if isinstance(operator, Fused) else [operator]  # type: ignore[arg-type]


def head_of(operator: Operator) -> Operator:
    return stages_of(operator)[0]
