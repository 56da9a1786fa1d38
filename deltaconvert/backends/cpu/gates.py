"""Gates as compiled loops on torch's threads, for streams with a new frame. deltaconvert/gate.py defines the meaning.

In torch a frame of 640x360 that is smoothed over 9 pixels takes 68 ms on a Zen 3 core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.native.threads import pool
from deltaconvert.backends.reference import INTEGER
from deltaconvert.gate import Watch


def has_loops(watch: Watch, dtype: torch.dtype) -> bool:
    """Whether loops can do a gate: learning noise, means over frames and a ceiling on changes are left to torch."""
    gate = watch.gate
    plain = gate.noise == 0 and gate.recent == 1 and gate.max_density == 1 and gate.nonfinite == "pass"
    return loops.FOUND and plain and dtype in loops.DTYPES


def look(watch: Watch, streams: Sequence[int], frame: Tensor, stored: Tensor, changed: Tensor) -> None:
    """Mark in `changed` (N, 1, H, W), which is empty, which pixels of `frame` (N, C, H, W) to store for these streams,
    as Watch.look does."""
    gate = watch.gate
    other = _judge(watch, streams, frame, stored, changed)
    for stream, differs in zip(streams, other, strict=True):
        if gate.refresh:
            turn = watch.of(stream).turn(frame[stream : stream + 1])[0, 0]
            changed[stream, 0] |= turn & torch.from_numpy(differs)
        watch.ticks[stream] += 1
        if gate.cut < 1 and changed[stream].float().mean() >= gate.cut:
            watch.counts[1] += 1
            changed[stream] = True


def _judge(
    watch: Watch, streams: Sequence[int], frame: Tensor, stored: Tensor, changed: Tensor
) -> np.ndarray:
    """Mark what is beyond the threshold, and what that takes along; bool (streams, H, W), where any bit differs."""
    from deltaconvert.backends.cpu.native.gate_tiles import ROWS, Frames, judge, scratch_size, take_along

    gate, limit = watch.gate, watch.threshold
    values, integer = frame.numpy(), INTEGER[frame.itemsize]
    _, channels, height, width = frame.shape
    number, smooth = values.dtype.type, 1 if limit == 0 else gate.smooth
    places = np.array(streams, dtype=np.int64)
    frames = Frames(
        values=values,
        stored=stored.numpy(),
        bits=frame.view(integer).numpy(),
        stored_bits=stored.view(integer).numpy(),
        limit=number(limit),
        peak=number(limit * gate.peak),
        weak=number(limit * gate.weak),
        smooth=smooth,
        streams=places,
        moved=changed[:, 0].numpy(),
        near=np.empty((len(places), height, width), np.bool_),
        other=np.empty((len(places), height, width), np.bool_),
        scratch=np.empty((pool().count, scratch_size(channels, smooth)), values.dtype),
    )
    judge(len(places) * -(-height // ROWS), 1, frames)
    if gate.dilate:
        take_along(len(places), 1, places, frames.moved, frames.near, gate.dilate)
    return frames.other
