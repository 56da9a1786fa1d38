"""The speed to expect of a converted network on this machine, from a short measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaconvert.model import DeltaModel
from deltaconvert.running.intake import sizes_text
from deltaconvert.text import counted
from deltaconvert.watching.measure import BASELINE, BenchRow, bench, environment

DENSITIES = (0.01, 0.05, 0.25)


@dataclass(frozen=True)
class Speed:
    """rows: one for each density, as measured. backend, device, input, frames: on what, and how long."""

    rows: Sequence[BenchRow]
    backend: str
    device: str
    input: str
    frames: int

    @property
    def basis(self) -> str:
        return (
            f"measured on {self.device}, {self.backend} backend, input {self.input}: a box of texture that moves "
            f"over a still background, medians of {self.frames} frames, against {BASELINE}. Real video differs: "
            "bench and run --video measure more"
        )

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        return {"rows": rows, "backend": self.backend, "device": self.device, "basis": self.basis}

    def __str__(self) -> str:
        times = ", ".join(f"{row.ratio:.2g}x where {row.asked:.0%} of the frame moves" for row in self.rows)
        return f"expected speed: {times}\n  ({self.basis})"


def expected_speed(
    model: DeltaModel,
    densities: Sequence[float] = DENSITIES,
    *,
    frames: int = 3,
    normalise: Callable[[Tensor], Tensor] = lambda image: image,
) -> Speed:
    """Measure a copy of `model`, which itself stays as it is; densities and normalise as in measure.bench.

    It runs frames + 2 dense and converted frames for each density, and holds the state twice for that time.
    """
    rows = list(bench(copy.deepcopy(model), densities, frames=frames, normalise=normalise))
    facts = environment()
    device = f"{counted(facts['threads'], 'thread')} of {facts['processor']}"
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    inputs = sizes_text([shape for shape, _ in model.example])
    return Speed(rows, model.backend, device, inputs, frames)
