"""Running a .pt2 of deltaconvert.export_pt2."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

import deltaconvert.library  # noqa: F401 - registers the operators that the file calls
from deltaconvert.errors import InputError
from deltaconvert.export.planned import FORMAT

METADATA = "deltaconvert.json"  # among the file's extra files


class DeltaProgram:
    """A network exported by deltaconvert.export_pt2, with the state of its streams: the images of a batch.

    The first frame, and the first after reset(), is computed in full.

    path: of the .pt2 file. It has to be one that you trust: torch's reader of such files can be made to run code.
    device: where frames and outputs are.
    """

    def __init__(self, path: str | Path, *, device: str | torch.device = "cpu"):
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # torch prints a page about it, and about one that is not there
                raise InputError(f"{path} is no .pt2 file")
        files = {METADATA: ""}
        program = torch.export.load(path, extra_files=files)
        self.metadata: dict[str, Any] = json.loads(files[METADATA] or "{}")
        if self.metadata.get("format") != FORMAT:
            raise InputError(f"{path} is no network of deltaconvert.export_pt2 that this version reads")
        self.device = torch.device(device)
        if self.device.type != "cpu":
            program = move_to_device_pass(program, self.device)
        self._call = program.module()
        self._open()

    def _open(self) -> None:
        self.frames = [(frame["name"], *_form(frame)) for frame in self.metadata["frames"]]
        self.streams: int = self.metadata["streams"]
        self.state = {
            state["name"]: torch.zeros(shape, dtype=dtype, device=self.device)
            for state in self.metadata["states"]
            for shape, dtype in [_form(state)]
        }
        # Streams whose next frame is computed in full.
        self._new = torch.ones(self.streams, dtype=torch.bool, device="cpu")

    def __call__(self, *frames: Tensor) -> Any:
        """The network's outputs for the next frame, nested as the network returns them. InputError, with the state
        untouched, for frames that do not fit."""
        self._check(frames)
        named = {name: frame for (name, _, _), frame in zip(self.frames, frames, strict=True)}
        everything, self._new = self._new, torch.ones_like(self._new)  # stays so if the frame fails half-way
        with torch.no_grad():
            found = self._call(**named, everything_changed=everything.to(self.device), state=self.state)
        self._new = torch.zeros_like(everything)
        return found

    def reset(self, stream: int | None = None) -> None:
        """Forget the last frames, of one stream or of all: the next one is computed in full."""
        if stream is None:
            self._new = torch.ones_like(self._new)
        elif 0 <= stream < self.streams:
            self._new[stream] = True
        else:
            raise InputError(f"there is no stream {stream}: the frames have {self.streams}")

    def another(self) -> DeltaProgram:
        """The same loaded network with a state of its own, for another camera."""
        twin = type(self).__new__(type(self))
        twin.metadata, twin.device, twin._call = self.metadata, self.device, self._call
        twin._open()
        return twin

    def _check(self, frames: Sequence[Tensor]) -> None:
        if len(frames) != len(self.frames):
            raise InputError(f"the network takes {len(self.frames)} frames, not {len(frames)}")
        for (name, shape, dtype), frame in zip(self.frames, frames, strict=True):
            if not isinstance(frame, Tensor):
                raise InputError(
                    f"{name} is a {type(frame).__name__}: give a tensor, as torch.from_numpy makes"
                )
            if tuple(frame.shape) != shape or frame.dtype != dtype or frame.device.type != self.device.type:
                raise InputError(
                    f"{name} is {frame.dtype} {list(frame.shape)} on {frame.device}; the network was exported for "
                    f"{dtype} {list(shape)} and is on {self.device}"
                )


def _form(described: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(described["shape"]), getattr(torch, described["dtype"])
