"""Padding by a constant, by mirrored, repeated or opposite pixels (ONNX Pad)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.layout import Layout
from deltaconvert.ops.base import Operator, StaysDense, constant, spelled
from deltaconvert.ops.places import Places


class Pad(Places):
    """N C H W -> N C' H' W' by F.pad: constant (of channels too), reflect, replicate, circular; negative pads crop.

    pads: before and after the width, then the height, then the channels, as torch reads them.
    """

    def __init__(self, pads: tuple[int, ...], mode: str, value: float | None):
        super().__init__()
        self.pads, self.mode, self.value = tuple(pads), mode, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads, self.mode, self.value)

    def on_maps(self, layouts: Sequence[Layout]) -> tuple[Operator, Layout] | None:
        """Around dimensions that are the channels, rows or columns of the map."""
        layout, pads = layouts[0], dict.fromkeys((3, 2, 1), (0, 0))
        for from_end in range(1, 4):
            both, dim = self.beside(4 - from_end), len(layout.dims) - from_end
            if both == (0, 0):
                continue
            axis = next((axis for axis in pads if dim > 0 and layout.in_order(layout.dims[dim], axis)), 0)
            kept = layout.with_axis(dim, axis, layout.size[axis] + sum(both)) if axis else None
            if kept is None or (axis == 1 and self.mode != "constant"):
                return None
            layout, pads[axis] = kept, both
        if self.mode == "constant":
            return Pad(sum(pads.values(), ()), self.mode, self.value), layout
        return Pad(pads[3] + pads[2], self.mode, self.value), layout

    def beside(self, dim: int) -> tuple[int, int]:
        """The pads before and after dimension `dim` of N C H W."""
        both = self.pads[2 * (3 - dim) : 2 * (3 - dim) + 2]
        return (both[0], both[1]) if both else (0, 0)

    def along(self, axis: int, places: Tensor) -> Tensor:
        value = -1 if self.mode == "constant" else None
        return F.pad(places.double().view(1, 1, -1), self.beside(2 + axis), self.mode, value).view(-1).long()

    def copied(self, rows: Tensor) -> Tensor:
        return F.pad(rows, self.beside(1), value=self.fill) if any(self.beside(1)) else rows

    @property
    def fill(self) -> float:  # type: ignore[override]
        return self.value or 0.0

    @property
    def position_free(self) -> bool:  # type: ignore[override]
        return not any(self.pads[:4])


@spelled(F.pad)
def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Operator, list[Any]]:
    pads = tuple(constant(p, "its padding") for p in constant(pad, "its padding"))
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise StaysDense(f"mode={mode!r}")
    if any(pads[6:]) or (mode != "constant" and len(pads) != 4):
        raise StaysDense("it pads more than height and width")
    if mode == "circular" and any(p < 0 for p in pads):  # torch 2.13 then reads memory that nobody wrote
        raise StaysDense("it crops and pads round at once")
    value = constant(value, "its value")
    return Pad(pads, mode, None if value is None else float(value)), [input]


@spelled(torch.constant_pad_nd)
def _constant(input: Any, pad: Any, value: Any = 0) -> tuple[Operator, list[Any]]:
    return _pad(input, pad, "constant", value)


@spelled(nn.ZeroPad2d, nn.ConstantPad2d)
def _constant_module(module: nn.ConstantPad2d, input: Any) -> tuple[Operator, list[Any]]:
    return _pad(input, module.padding, "constant", module.value)


@spelled(nn.ReflectionPad2d)
def _reflection_module(module: nn.ReflectionPad2d, input: Any) -> tuple[Operator, list[Any]]:
    return _pad(input, module.padding, "reflect")


@spelled(nn.ReplicationPad2d)
def _replication_module(module: nn.ReplicationPad2d, input: Any) -> tuple[Operator, list[Any]]:
    return _pad(input, module.padding, "replicate")


@spelled(nn.CircularPad2d)
def _circular_module(module: nn.CircularPad2d, input: Any) -> tuple[Operator, list[Any]]:
    return _pad(input, module.padding, "circular")
