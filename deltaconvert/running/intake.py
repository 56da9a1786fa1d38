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
    """The number of dimensions, type and device of each flat input. Sizes may change from frame to frame, unless the
    network was captured for certain sizes only."""

    signature: Signature
    forms: tuple[tuple[int, torch.dtype, torch.device], ...]

    @classmethod
    def of(cls, signature: Signature, frames: Sequence[Tensor]) -> Intake:
        return cls(signature, tuple((frame.dim(), frame.dtype, frame.device) for frame in frames))

    def check(self, frames: Sequence[Tensor]) -> None:
        """InputError for frames that the network does not take."""
        for place, (frame, form) in enumerate(zip(frames, self.forms, strict=True)):
            _check_frame(place, frame, *form)
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
        """The frames on the network's device. Host memory goes through a pinned copy, which torch keeps until it was
        read."""
        return [
            frame if frame.device == device else frame.pin_memory().to(device, non_blocking=True)
            for frame, (_, _, device) in zip(map(plain, frames), self.forms, strict=True)
        ]

    def blank(self, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Zeros of these sizes, in its types and on its device."""
        return [
            torch.zeros(tuple(size), dtype=dtype, device=device)
            for size, (_, dtype, device) in zip(sizes, self.forms, strict=True)
        ]


def _check_frame(place: int, frame: Tensor, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    if torch._C._functorch.is_functorch_wrapped_tensor(frame):
        raise InputError(
            f"input {place} is in the hands of torch.vmap or torch.func, which cannot keep a network's state: call the "
            "network itself; the images of a batch are its streams"
        )
    if frame.layout != torch.strided or frame.is_nested:
        kind = "nested" if frame.is_nested else str(frame.layout).partition(".")[2]
        raise InputError(f"input {place} is a {kind} tensor: give a dense one (frame.to_dense())")
    if frame.dim() != dim:
        wanted = " (N C H W): one image is frame[None], and frame.permute(2, 0, 1)[None] where its colours come last"
        raise InputError(
            f"input {place} has shape {tuple(frame.shape)}; the network was converted for {dim} dimensions"
            + wanted * (dim == 4)
        )
    if frame.dtype != dtype:
        way = f"convert the frame (frame.to({dtype})) or convert the network again for {frame.dtype}"
        if frame.dtype == torch.uint8 and dtype.is_floating_point:
            way = f"scale bytes as it was trained, such as frame.to({dtype}) / 255, less the mean, by the deviation"
        raise InputError(f"input {place} is {frame.dtype}; the network was converted for {dtype}: {way}")
    if frame.device != device and frame.device.type != "cpu":
        raise InputError(
            f"input {place} is on {frame.device}; the network was converted on {device}: frame.to('{device}')"
        )
    if frame.numel() == 0:
        raise InputError(f"input {place} is empty: its shape is {tuple(frame.shape)}")


def plain(frame: Tensor) -> Tensor:
    """The values alone: no gradients, no subclass, and no lazy negation (torch's negative bit)."""
    if type(frame) is not Tensor or frame.requires_grad:
        frame = frame.detach().as_subclass(Tensor)
    return frame.resolve_neg() if frame.is_neg() else frame


def sizes_of(frames: Sequence[Tensor]) -> Sizes:
    return tuple(tuple(frame.shape) for frame in frames)


def sizes_text(sizes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("x".join("N" if n is None else str(n) for n in size) for size in sizes)
