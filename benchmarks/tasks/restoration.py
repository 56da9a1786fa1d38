"""upscale: SPAN's larger picture. denoise: DnCNN's clean one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tasks.frames import clip_of, sample
from benchmarks.tasks.task import Task


class _Truth:
    """What outputs are compared with, pictures from before they were made small or noisy. Calibration goes by them,
    too: a denoiser's own outputs differ from each other by what it leaves of the noise.

    frames: uint8 (H, W, 3) by number; picture_to: one of them as the network would give it.
    """

    def __init__(
        self, frames: Any, picture_to: Callable[[Tensor], Tensor], calibration: Sequence[int]
    ) -> None:
        self._frames, self._picture_to, self._calibration = frames, picture_to, calibration
        self._kept: dict[tuple[int, ...], list[Tensor]] = {}
        self._dense: float | None = None

    def _pictures(self, numbers: Sequence[int], device: torch.device) -> list[Tensor]:
        key = tuple(numbers)
        if key not in self._kept:
            self._kept[key] = [self._picture_to(p).half().to(device) for p in self._frames(numbers)]
        return self._kept[key]

    def error(self, found: Sequence[Any], numbers: Sequence[int]) -> float:
        """Mean squared error; values are 0 to 1."""
        pairs = zip(found, self._pictures(numbers, found[0].device), strict=True)
        errors = [(a.float().clamp(0, 1) - b.float()).square().mean() for a, b in pairs]
        return float(torch.stack(errors).mean())

    def score(self, found: list[Any], dense: list[Any], numbers: Sequence[int]) -> float:
        """PSNR, dB."""
        return -10 * math.log10(self.error(found, numbers))

    def lost(self, ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Of the PSNR in the calibration frames; the dense network's is measured once."""
        if self._dense is None:
            self._dense = -10 * math.log10(self.error(dense, self._calibration))
        return self._dense + 10 * math.log10(self.error(ours, self._calibration))

    def guide(self, ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Root of the mean squared error in the calibration frames."""
        return math.sqrt(self.error(ours, self._calibration))


def restoration_task(
    name: str,
    network: nn.Module,
    frames: Any,
    numbers: tuple[Sequence[int], Sequence[int]],
    prepare: Any,
    picture_to: Callable[[Tensor], Tensor],
    resized: Any,
    said: str,
    streams: int,
) -> Task:
    """numbers: of the frames to calibrate on, and of the test's."""
    truth = _Truth(frames, picture_to, numbers[0])
    return Task(
        name=name,
        network=network,
        frames=frames,
        calibration=numbers[0],
        test=numbers[1],
        prepare=prepare,
        decode=lambda output: output.half(),
        resized=resized,
        score=truth.score,
        truth=said,
        accepted=0.1,
        features=lambda output: output.half(),
        streams=streams,
        budget=0.1,
        metric=truth.lost,
        guide=truth.guide,
    )


def upscale(calibration: int, test: int) -> Task:
    import zoo

    return restoration_task(
        "upscale",
        zoo.load("span_x4"),
        clip_of("sam2_05_default_juggle.mp4"),
        (sample(0, 47, calibration), range(247 - min(test, 200), 247)),
        lambda x, size=(180, 320): F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255) / 255,
        lambda picture: picture.permute(2, 0, 1)[None] / 255,
        lambda output, size: F.interpolate(output, [4 * s for s in size], mode="bicubic").half(),
        "PSNR against the full-size frame, dB",
        20,
    )


class Denoised(nn.Module):
    """The picture without the noise that the network finds in it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return x - self.network(x)


def denoise(calibration: int, test: int) -> Task:
    """PETS with fresh sensor noise of deviation 25 in every frame."""
    import zoo

    draw = torch.Generator().manual_seed(0)

    def prepare(x: Tensor, size: tuple[int, int] = (360, 480)) -> Tensor:
        x = x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear")
        clean = x.mean(1, keepdim=True)
        return (clean + torch.randn(clean.shape, generator=draw).to(x) * 25) / 255

    return restoration_task(
        "denoise",
        Denoised(zoo.load("dncnn_s25")),
        clip_of("pets_vtest_480x360.mp4"),
        (sample(100, 350, calibration), range(400, 400 + test)),
        prepare,
        lambda picture: picture.permute(2, 0, 1)[None].float().mean(1, keepdim=True) / 255,
        lambda output, size: F.interpolate(output, size, mode="bicubic").half(),
        "PSNR against the frame before noise was added, dB",
        10,
    )
