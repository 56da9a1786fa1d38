"""Where frames come in: what differs from what is stored is stored, listed and marked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu import gates, loops
from deltaconvert.backends.cpu.edges import Edge, any_set, listed
from deltaconvert.backends.cpu.machine_code import compiled, shared
from deltaconvert.backends.reference import INTEGER, fill_unseen
from deltaconvert.gate import Watch

PIECE = 4096  # pixels that a thread takes at a time: their flags stay in the innermost cache
MANY = 1 / 4  # of a frame's pixels: where so many changed, no list of them is made


class FrameEdge(Edge):
    """A delta that dense values come in by. It keeps the last values in their own memory layout as well: comparing
    goes through both from end to end, and only changed pixels are turned into rows.

    watch: the gate that decides what is new, if there is one."""

    threshold: float

    def __init__(self, kept: Map, watch: Watch | None):
        self.stored, self.watch = torch.empty(kept.shape, dtype=kept.dtype), watch
        super().__init__(kept)
        self._asleep: Collection[int] = ()
        self._frame: Tensor | None = None  # the newest one, where it comes in another form
        self._integer = INTEGER[kept.dtype.itemsize]

    def reset(self, streams: slice) -> None:
        super().reset(streams)
        fill_unseen(self.stored[streams])

    def put(self, stream: int, values: Tensor) -> None:
        super().put(stream, values)
        self.stored[stream] = values

    def state_bytes(self) -> int:
        held = 0 if self._frame is None else self._frame.nbytes
        return super().state_bytes() + self.stored.nbytes + held

    def sleep(self, streams: Collection[int]) -> None:
        """These streams' images are those of the frame before, until it is said again."""
        self._asleep = streams
        if self.watch is not None:
            self.watch.sleep(streams)

    def run(self, frame: Tensor) -> None:
        frame = self._in_form(frame)
        changed = None
        if self.watch is not None:
            frame, changed = self._seen_by(self.watch, frame)
        if loops.FOUND and (self.threshold == 0 or changed is not None or frame.dtype in loops.DTYPES):
            self._look(frame, changed)
            return
        changed = self._changed(frame) if changed is None else changed
        count = int(changed.count_nonzero()) if any_set(changed) else 0
        if count == 0:
            self.stand_still()
        elif count > MANY * self.pixel_count:
            everything = count == self.pixel_count
            self.stored = frame.clone() if everything else torch.where(changed, frame, self.stored)
            self.values.copy_(self.stored)
            self.mark(changed, self.pixel_count, count)
        else:
            pixels = listed(changed)
            self._store(frame, pixels)
            self.mark(changed, self.pixel_count, count, pixels)

    def _in_form(self, frame: Tensor) -> Tensor:
        """In the type and layout of what is stored: bytes of a camera, channels last. Images of streams that sleep may
        be older ones."""
        if frame.dtype == self.stored.dtype and frame.is_contiguous():
            return frame
        if self._frame is None:
            self._frame = torch.empty_like(self.stored)
        for stream in self._awake:
            self._frame[stream].copy_(frame[stream])
        return self._frame

    def _look(self, frame: Tensor, changed: Tensor | None) -> None:
        """All of it in one walk through the frame; `changed` if a gate has judged it."""
        awake = torch.tensor(sorted(self._awake), dtype=torch.int64)
        mask = changed
        if mask is None:
            mask = torch.empty_like(self._none) if not self._asleep else torch.zeros_like(self._none)
        limit = None if changed is not None else self.threshold or None
        count, pixels = look(frame, self.stored, self.rows, mask, awake, limit, judged=changed is not None)
        if count:
            self.mark(mask, self.pixel_count, count, pixels)
        else:
            self.stand_still()

    def _store(self, frame: Tensor, pixels: Tensor) -> None:
        _, channels, height, width = frame.shape
        plane = height * width
        # Pixel p of stream s is element p of each of the stream's channel planes.
        first = pixels % plane + pixels // plane * (channels * plane)
        places = (first.view(-1, 1) + torch.arange(channels) * plane).view(-1)
        new = frame.view(-1).index_select(0, places)
        self.stored.view(-1).index_copy_(0, places, new)
        self.rows.index_copy_(0, pixels, new.view(-1, channels))

    def _seen_by(self, watch: Watch, frame: Tensor) -> tuple[Tensor, Tensor]:
        """As Watch.look: each stream by itself, those that sleep not at all."""
        changed = torch.zeros_like(frame[:, :1], dtype=torch.bool)
        if gates.has_loops(watch, frame.dtype):
            gates.look(watch, sorted(self._awake), frame, self.stored, changed)
            return frame, changed
        if watch.gate.nonfinite == "hold":
            frame = frame.clone()
        for stream in self._awake:
            here = slice(stream, stream + 1)
            frame[here], changed[here] = watch.of(stream).look(frame[here], self.stored[here])
        return frame, changed

    @property
    def _awake(self) -> set[int]:
        return set(range(len(self.values))) - set(self._asleep)

    def _changed(self, frame: Tensor) -> Tensor:
        """bool (N, 1, H, W)."""
        if not self._asleep:
            return self._differs(frame, self.stored)
        changed = torch.zeros_like(frame[:, :1], dtype=torch.bool)
        for stream in self._awake:
            here = slice(stream, stream + 1)
            changed[here] = self._differs(frame[here], self.stored[here])
        return changed

    def _differs(self, frame: Tensor, stored: Tensor) -> Tensor:
        if self.threshold == 0:
            per_channel = frame.view(self._integer) != stored.view(self._integer)
            if not any_set(per_channel):
                return self._none[: len(frame)]
        else:
            per_channel = ((frame - stored).abs_() <= self.threshold).logical_not_()
        if frame.shape[1] > 4:
            return per_channel.any(1, keepdim=True)
        changed = per_channel[:, :1]
        for channel in range(1, frame.shape[1]):  # faster than a reduction over three values
            changed = changed | per_channel[:, channel : channel + 1]
        return changed.contiguous()


def look(
    frame: Tensor,
    stored: Tensor,
    rows: Tensor,
    mask: Tensor,
    streams: Tensor,
    limit: float | None,
    *,
    judged: bool,
) -> tuple[int, Tensor | None]:
    """Find the pixels at which a channel of frame (N, C, H, W) differs from `stored`, mark them in mask (N, 1, H, W),
    and copy them to `stored` and to rows (N * H * W, C). Returns how many there are, and their list if they are few.

    streams: those to look at. limit: by more than so much; None for any difference of bits. A NaN differs from all.
    judged: the mask says already which.
    """
    if limit is None:
        integer = INTEGER[frame.itemsize]
        frame, stored, rows = (x.view(integer) for x in (frame, stored, rows))
    new, old = (x.view(*x.shape[:2], -1).numpy() for x in (frame, stored))
    plane = new.shape[2]
    pieces = len(streams) * -(-plane // PIECE)
    found, counts = np.empty(len(rows), dtype=np.int64), np.zeros(pieces, dtype=np.int64)
    at_most = None if limit is None else new.dtype.type(limit)
    flags = mask.view(len(frame), plane).view(torch.uint8).numpy()
    _look(pieces, 1, new, old, rows.numpy(), flags, streams.numpy(), at_most, judged, found, counts)
    count = int(counts.sum())
    if not 0 < count <= MANY * len(rows):
        return count, None
    pixels = np.empty(count, dtype=np.int64)
    _joined(found, counts, streams.numpy(), plane, pixels)
    return count, torch.from_numpy(pixels)


@shared
def _look(
    thread: int,
    first: int,
    last: int,
    frame: Any,
    stored: Any,
    rows: Any,
    flags: Any,
    streams: Any,
    limit: Any,
    judged: bool,
    found: Any,
    counts: Any,
) -> None:
    """Pieces `first` to `last` of the streams. The pixels of a piece are listed in its own part of `found`."""
    channels, plane = frame.shape[1], frame.shape[2]
    pieces = -(-plane // PIECE)
    for piece in range(first, last):
        stream, start = streams[piece // pieces], piece % pieces * PIECE
        end = min(start + PIECE, plane)
        own = flags[stream, start:end]
        if not judged:
            own[:] = 0
            for c in range(channels):
                new, old = frame[stream, c, start:end], stored[stream, c, start:end]
                for i in range(len(own)):
                    if limit is None:
                        own[i] |= np.uint8(new[i] != old[i])
                    else:
                        own[i] |= np.uint8(not abs(new[i] - old[i]) <= limit)
        any_of_them = np.uint8(0)
        for i in range(len(own)):
            any_of_them |= own[i]
        if not any_of_them:
            continue
        listed, count = found[stream * plane + start : stream * plane + end], 0
        for i in range(len(own)):
            listed[count] = stream * plane + start + i  # kept if the next one does not take its place
            count += own[i]
        counts[piece] = count
        for c in range(channels):
            new, old = frame[stream, c], stored[stream, c]
            for pixel in listed[:count]:
                value = new[pixel - stream * plane]
                old[pixel - stream * plane] = value
                rows[pixel, c] = value


@compiled
def _joined(found: Any, counts: Any, streams: Any, plane: int, pixels: Any) -> None:
    """The lists of all pieces one after the other."""
    pieces, at = -(-plane // PIECE), 0
    for piece in range(len(counts)):
        start = streams[piece // pieces] * plane + piece % pieces * PIECE
        for i in range(counts[piece]):
            pixels[at + i] = found[start + i]
        at += counts[piece]
