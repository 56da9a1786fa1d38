"""Frames as a network takes them, from calls, images, a video, a folder of images or a camera."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaconvert import feed, video
from deltaconvert.errors import InputError, VideoError
from deltaconvert.model import DeltaModel
from deltaconvert.running.intake import sizes_of, sizes_text
from deltaconvert.watching.watch import resize

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def inputs_of(model: DeltaModel, frames: Any, limit: int | None = None) -> list[list[Tensor]]:
    """The tensors of each call, in order, at most `limit` calls.

    frames: calls of the network, like convert's example; or uint8 (H, W, 3) images, from which the model's recipe makes
    inputs (of the network's size, if it has only one); or where such images are: a path, an address, a camera's number.
    """
    source = images_of(frames) if isinstance(frames, str | os.PathLike | int) else frames
    if isinstance(source, Tensor) or not isinstance(source, Iterable):
        what = "one tensor" if isinstance(source, Tensor) else f"a {type(source).__name__}"
        raise InputError(f"frames are {what}: give a list of frames, or where to read them")
    calls = [_call(model, frame) for frame in itertools.islice(source, limit)]
    for number, call in enumerate(calls):
        try:
            model.check_frames(call)
        except InputError as error:
            raise InputError(f"frame {number}: {error}") from error
        if sizes_of(call) != sizes_of(calls[0]):
            before, now = sizes_text(sizes_of(calls[0])), sizes_text(sizes_of(call))
            raise InputError(
                f"frame {number} has the size {now}, those before it {before}: give frames of one size"
            )
    return calls


def images_of(source: str | os.PathLike[str] | int) -> Iterator[Tensor]:
    """uint8 (H, W, 3) images of a video, or of the files in a folder, sorted by name."""
    if not isinstance(source, int) and Path(source).is_dir():
        files = sorted(file for file in Path(source).iterdir() if file.suffix.lower() in IMAGES)
        if not files:
            raise InputError(f"{source}: no images in this folder ({', '.join(IMAGES)})")
        for file in files:
            with video.read(file, limit=1) as reader:
                yield next(reader)
        return
    source = source if isinstance(source, int) else str(source)
    with video.read(source) as reader:
        yield from _until_lost(reader) if video.is_live(source) else reader


def _until_lost(camera: Iterator[Tensor]) -> Iterator[Tensor]:
    """Frames of a camera. If it is lost after two of them, which is enough for a run, they are all there is: they do
    not come again."""
    seen = 0
    try:
        for image in camera:
            seen += 1
            yield image
    except VideoError as error:
        if seen < 2:
            raise
        warnings.warn(f"{error}; going on with the {seen} frames before it", RuntimeWarning, stacklevel=2)


def _call(model: DeltaModel, frame: Any) -> list[Tensor]:
    if isinstance(frame, Tensor) and frame.dtype == torch.uint8 and frame.dim() == 3 and frame.shape[2] == 3:
        image = resize(frame, model.signature.pixels)
        return [feed.from_json(model.info.get("recipe")).prepare(image).to(model.device)]
    if isinstance(frame, tuple):
        return model.signature.flatten(frame, {})
    if isinstance(frame, dict):
        return model.signature.flatten((), frame)
    return model.signature.flatten((frame,), {})
