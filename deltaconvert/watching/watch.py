"""Runs a converted network on a video; if asked, beside the dense one, and with an overlay of what changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.drawing.overlay import heatmap, overlay
from deltaconvert.errors import InputError
from deltaconvert.model import DeltaModel
from deltaconvert.running.monitor import Observed
from deltaconvert.stats import nonfinite_text
from deltaconvert.video import VideoReader, VideoWriter
from deltaconvert.watching.measure import BASELINE, Dense, Difference, quantile, timed

Prepare = Callable[[Tensor], Tensor]
COOLING = 0.9  # share of a pixel's heat that is left a frame later: half after seven frames
MARKS = ("mask", "heatmap")


@dataclass(frozen=True)
class Seen:
    """One frame. frame: uint8 (H, W, 3); mask: bool (H, W), the pixels that changed; density: their share.

    work: the share of the dense multiply-accumulates. outputs, delta_ms: the network's outputs, and its milliseconds;
    dense, dense_ms: the same of the dense network, None without a comparison.
    """

    frame: Tensor
    mask: Tensor
    density: float
    work: float
    outputs: Any
    delta_ms: float
    dense: list[Tensor] | None
    dense_ms: float | None


@dataclass
class Summary:
    """A summary of a video. Densities and times leave out the first frame, which is always computed in full."""

    width: int
    height: int
    difference: Difference = field(default_factory=Difference)
    frames: int = 0
    densities: list[float] = field(default_factory=list)
    works: list[float] = field(default_factory=list)
    delta_ms: list[float] = field(default_factory=list)
    dense_ms: list[float] = field(default_factory=list)
    observed: Observed | None = None  # what the model's monitor saw
    nonfinite: dict[str, int] = field(default_factory=dict)  # see stats.Stats

    def add(self, seen: Seen) -> None:
        self.frames += 1
        if seen.dense is not None:
            self.difference.add(seen.outputs, seen.dense)
        if self.frames == 1:
            return
        self.densities.append(seen.density)
        self.works.append(seen.work)
        self.delta_ms.append(seen.delta_ms)
        if seen.dense_ms is not None:
            self.dense_ms.append(seen.dense_ms)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "frames": self.frames,
            "size": [self.width, self.height],
            "density": _mean(self.densities),
            "work": _mean(self.works),
            "delta_ms": _times(self.delta_ms),
        }
        if self.difference.frames:
            out["dense_ms"] = _times(self.dense_ms)
            median = quantile(self.delta_ms, 0.5)
            out["speedup"] = quantile(self.dense_ms, 0.5) / median if self.dense_ms else None
            out["difference"] = self.difference.to_json()
            out["baseline"] = BASELINE
        if self.observed is not None:
            out["observed"] = self.observed.to_json()
        if self.nonfinite:
            out["nonfinite"] = self.nonfinite
        return out

    def __str__(self) -> str:
        lines = [f"{self.frames} frame{'s' * (self.frames != 1)} of {self.width}x{self.height}"]
        if self.frames == 1:
            lines.append("  the first frame is computed in full: what is saved a longer video tells")
        if self.delta_ms:
            pixels, work = _mean(self.densities), _mean(self.works)
            lines.append(f"  changed pixels {pixels:.1%}, multiply-accumulates {work:.1%} of dense")
            lines.append(f"  delta {_time_text(self.delta_ms)}")
        if self.dense_ms:
            ratio = quantile(self.dense_ms, 0.5) / quantile(self.delta_ms, 0.5)
            lines.append(f"  dense {_time_text(self.dense_ms)}: delta is {ratio:.2f} times as fast")
            lines.append(f"  (against {BASELINE})")
        if self.difference.frames:
            maximum, relative = self.difference.maximum, self.difference.relative
            lines.append(f"  difference to dense: at most {maximum:.3g}, relative L2 {relative:.3g}")
        if self.observed is not None:
            lines.append(f"  {self.observed}")
        lines += [f"  {said}" for said in nonfinite_text(self.nonfinite)]
        return "\n".join(lines)


def watch(
    model: DeltaModel, frames: Iterable[Tensor], prepare: Prepare, *, dense: Dense | None = None
) -> Iterator[Seen]:
    """Run the network on uint8 (H, W, 3) frames, RGB. dense: also run this, the two taking turns at going first."""
    for number, frame in enumerate(frames):
        x = prepare(frame).to(model.device)
        args, kwargs = model.signature.call([x])
        theirs, dense_ms = None, None
        # In the first frame the dense one goes second: the converted one explains what does not fit.
        if dense is not None and number % 2 == 1:
            theirs, dense_ms = timed(dense, x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the input size changed")  # the video has its own size
            outputs, delta_ms = timed(model, *args, **kwargs)
        if dense is not None and number % 2 == 0:
            theirs, dense_ms = timed(dense, x)
        mask, density = changed_pixels(model, frame, x)
        yield Seen(frame, mask, density, model.stats().work, outputs, delta_ms, theirs, dense_ms)


def changed_pixels(model: DeltaModel, frame: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """(bool (H, W), share): what changed at the first node that compares, as pixels of the frame."""
    full = torch.zeros(frame.shape[:2], dtype=torch.bool, device=frame.device)
    for mask in model.masks().values():
        size = (min(x.shape[2], full.shape[0]), min(x.shape[3], full.shape[1]))
        own = mask[:1].float().to(frame.device)
        shown = own if tuple(own.shape[2:]) == size else F.interpolate(own, size)
        full[: size[0], : size[1]] = shown[0, 0] > 0  # what was cut off at the right and below never changes
        return full, float(mask.float().mean())
    return ~full, 1.0


def watch_video(
    model: DeltaModel,
    reader: VideoReader,
    prepare: Prepare,
    *,
    compare: bool = False,
    size: tuple[int, int] | None = None,
    out: str | Path | None = None,
    marks: str = "mask",
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda frames: frames,
) -> Summary:
    """Run the network on a video.

    compare: whether to run the dense network beside it.
    size: (width, height) that frames are resized to first.
    out: a video to write, with the changed pixels marked.
    marks: "mask" marks those of each frame, "heatmap" those of the last frames, the warmer the more often.
    progress: wraps the frames, to show how far it is.
    """
    if len(model.example) != 1 or len(model.example[0][0]) != 4:
        raise InputError(f"the network takes {len(model.example)} inputs, a video feeds one image at a time")
    if marks not in MARKS:
        raise InputError(f"there are no marks {marks!r}: choose from {', '.join(MARKS)}")
    width, height = size or (reader.width, reader.height)
    heat = torch.zeros(height, width)
    summary = Summary(width, height)
    frames = (resize(frame, size) for frame in progress(reader))
    with VideoWriter(out, reader.fps, (width, height)) if out is not None else nullcontext() as writer:
        for seen in watch(model, frames, prepare, dense=Dense(model) if compare else None):
            summary.add(seen)
            if writer is not None:
                label = f"{seen.density:.1%} of pixels, {seen.work:.1%} of the work"
                if marks == "mask":
                    writer.write(overlay(seen.frame, seen.mask, label=label))
                    continue
                if summary.frames > 1:  # the first frame is full: it would warm all of the map
                    heat = heat * COOLING + seen.mask * (1 - COOLING)
                writer.write(heatmap(seen.frame, heat, label=label))
    stats = model.stats()
    summary.observed, summary.nonfinite = stats.observed, stats.nonfinite
    return summary


def resize(frame: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 (H, W, 3) to (height, width, 3) by bilinear interpolation, to one grey level; size is (width, height)."""
    if size is None or (frame.shape[1], frame.shape[0]) == size:
        return frame
    # Bytes stay bytes: from 1080p to 320x240 these take 2 ms, floats 18 to 25.
    image = frame.permute(2, 0, 1).unsqueeze(0)
    image = F.interpolate(image, (size[1], size[0]), mode="bilinear", align_corners=False, antialias=True)
    return image[0].permute(1, 2, 0).contiguous()


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _times(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": quantile(values, 0.5), "p95": quantile(values, 0.95)} if values else None


def _time_text(values: Sequence[float]) -> str:
    return (
        f"{quantile(values, 0.5):.1f} ms a frame (median), {quantile(values, 0.95):.1f} ms (95th percentile)"
    )
