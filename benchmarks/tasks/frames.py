"""The frames of the tasks: videos and pictures of ../shared/data, by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
LABELS = next((folder for folder in (DATA / "labels", ROOT / "labels") if folder.exists()), DATA / "labels")
RUNS = 3  # of calibration frames


def sample(begin: int, end: int, count: int) -> list[int]:
    """Three runs of frames in a row, as a video has them, from different places: across the gaps what was dropped adds
    up."""
    runs = min(RUNS, count)
    lengths = [count // runs + (run < count % runs) for run in range(runs)]
    apart = (end - begin - count) // max(runs - 1, 1)
    firsts = [begin + sum(lengths[:run]) + run * apart for run in range(runs)]
    return [
        frame for first, length in zip(firsts, lengths, strict=True) for frame in range(first, first + length)
    ]


def clip_of(name: str) -> Callable[[Sequence[int]], Iterator[Tensor]]:
    """The frames of a video by number, in order; by OpenCV where PyAV is missing."""

    def frames(numbers: Sequence[int]) -> Iterator[Tensor]:
        wanted, path = set(numbers), DATA / "videos" / name
        for place, frame in enumerate(_decoded(path)):
            if place in wanted:
                yield frame
            if place >= max(wanted):
                return

    return frames


def _decoded(path: Path) -> Iterator[Tensor]:
    try:
        import av  # noqa: F401
    except ImportError:
        import cv2

        video = cv2.VideoCapture(str(path))
        while True:
            good, frame = video.read()
            if not good:
                return
            yield torch.from_numpy(frame[:, :, ::-1].copy())
    from deltaconvert import video as videos

    yield from videos.read(path)


def picture_of(path: Path) -> Tensor:
    """uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))
