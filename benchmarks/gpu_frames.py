"""The frames that benchmarks/gpu.py plays: a box of fresh texture that moves over a still one, and real clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4")


def video(base: Tensor, density: float, frames: int) -> Iterator[Tensor]:
    """A box of `density` of the frame with new texture in every frame; it moves by two pixels a frame."""
    height, width = base.shape[2:]
    h, w = round(height * density**0.5), round(width * density**0.5)
    for index in range(frames):
        frame = base.clone()
        y, x = (height - h) // 3, min((width - w) // 3 + 2 * index, width - w)
        frame[:, :, y : y + h, x : x + w] = torch.rand_like(frame[:, :, y : y + h, x : x + w])
        yield frame


def clip(path: Path, base: Tensor, count: int) -> list[Tensor]:
    """Frames of a clip in 0..1, as large as `base`; the images of a batch are the same."""
    batch, depth, *size = base.shape
    images = _decoded(path, count)
    if not images:
        print(f"no {path.name}: {path.parent} or OpenCV is missing")
    frames = []
    for image in images:
        values = image.to(base.device).permute(2, 0, 1)[None, :depth].to(base.dtype) / 255
        frames.append(torch.nn.functional.interpolate(values, size, mode="nearest").repeat(batch, 1, 1, 1))
    return frames


def _decoded(path: Path, count: int) -> list[Tensor]:
    """uint8 (H, W, 3)."""
    try:
        import cv2
    except ImportError:
        return []
    source, images = cv2.VideoCapture(str(path)), []
    while len(images) < count:
        there, image = source.read()
        if not there:
            break
        images.append(torch.from_numpy(image))
    return images


def there_and_back(frames: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields frames forwards and backwards without end, starting behind the first, which was just played."""
    return itertools.cycle([*frames[1:], *reversed(frames[:-1])])
