"""What a converted network takes: frames that fit, or an error that says which does not, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaconvert.errors import InputError
from deltaconvert.signature import Signature

Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Intake:
    """The flat inputs of a network: of each the number of dimensions, type and device. Sizes may change from frame to
    frame, unless the signature's graph holds for some alone."""

    signature: Signature
    forms: tuple[tuple[int, torch.dtype, torch.device], ...]

    @classmethod
    def of(cls, signature: Signature, frames: Sequence[Tensor]) -> Intake:
        return cls(signature, tuple((frame.dim(), frame.dtype, frame.device) for frame in frames))

    def check(self, frames: Sequence[Tensor]) -> None:
        """InputError for frames that the network does not take."""
        for place, (frame, (dim, dtype, device)) in enumerate(zip(frames, self.forms, strict=True)):
            if frame.dim() != dim:
                raise InputError(
                    f"input {place} has shape {tuple(frame.shape)}; the network was converted for {dim} dimensions"
                )
            if frame.dtype != dtype:
                raise InputError(
                    f"input {place} is {frame.dtype}; the network was converted for {dtype}: convert the frame "
                    f"(frame.to({dtype})) or convert the network again for {frame.dtype}"
                )
            if frame.device != device and frame.device.type != "cpu":
                raise InputError(f"input {place} is on {frame.device}; the network was converted on {device}")
            if frame.numel() == 0:
                raise InputError(f"input {place} is empty: its shape is {tuple(frame.shape)}")
        self.check_sizes(sizes_of(frames))
        batches = {frame.shape[0] for frame in frames if frame.dim() == 4}
        if len(batches) > 1:
            raise InputError(
                f"the inputs have batches of {sorted(batches)}: every stream needs one image in each"
            )

    def check_sizes(self, sizes: Sizes) -> None:
        if not self.signature.fits(sizes):
            raise InputError(
                f"the inputs have shapes {sizes_text(sizes)}; the network was captured for "
                f"{sizes_text(self.signature.sizes or ())} alone: convert it once for each size"
            )

    def check_batches(self) -> None:
        """InputError where an input has no batch that could be wider."""
        for place, (dim, _, _) in enumerate(self.forms):
            if dim != 4:
                raise InputError(f"input {place} has {dim} dimensions, not N C H W: it has no batch to widen")

    def bring(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """The frames on the network's device; torch keeps the pinned copy of one from host memory until it was read."""
        return [
            frame if frame.device == device else frame.pin_memory().to(device, non_blocking=True)
            for frame, (_, _, device) in zip(frames, self.forms, strict=True)
        ]

    def blank(self, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Zeros of these sizes, in its types and on its device."""
        return [
            torch.zeros(tuple(size), dtype=dtype, device=device)
            for size, (_, dtype, device) in zip(sizes, self.forms, strict=True)
        ]


def sizes_of(frames: Sequence[Tensor]) -> Sizes:
    return tuple(tuple(frame.shape) for frame in frames)


def sizes_text(sizes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("x".join("N" if n is None else str(n) for n in size) for size in sizes)
