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
    """Calibrated against the truth of the calibration frames: a denoiser's own outputs differ from each other by what
    it leaves of the noise."""
    kept: dict[tuple[int, ...], list[Tensor]] = {}

    def clean(numbers: Sequence[int], device: torch.device) -> list[Tensor]:
        if tuple(numbers) not in kept:
            kept[tuple(numbers)] = [picture_to(p).half().to(device) for p in frames(numbers)]
        return kept[tuple(numbers)]

    def error(found: Sequence[Any], numbers: Sequence[int]) -> float:
        """Mean squared error; values are 0 to 1."""
        pairs = zip(found, clean(numbers, found[0].device), strict=True)
        errors = [(a.float().clamp(0, 1) - b.float()).square().mean() for a, b in pairs]
        return float(torch.stack(errors).mean())

    def psnr(found: Sequence[Any], numbers: Sequence[int]) -> float:
        return -10 * math.log10(error(found, numbers))

    dense_psnr: list[float] = []

    def lost(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Of the PSNR; the dense network's is measured once."""
        if not dense_psnr:
            dense_psnr.append(psnr(dense, numbers[0]))
        return dense_psnr[0] - psnr(ours, numbers[0])

    return Task(
        name=name,
        network=network,
        frames=frames,
        calibration=numbers[0],
        test=numbers[1],
        prepare=prepare,
        decode=lambda output: output.half(),
        resized=resized,
        score=lambda found, dense, numbers: psnr(found, numbers),
        truth=said,
        accepted=0.1,
        features=lambda output: output.half(),
        streams=streams,
        budget=0.1,
        metric=lost,
        guide=lambda ours, dense: math.sqrt(error(ours, numbers[0])),
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
