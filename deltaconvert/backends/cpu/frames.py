"""The edge of a frame: pixels that differ from what is stored are stored, listed and marked."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu import gates
from deltaconvert.backends.cpu.edges import Edge, any_set, listed, planar
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.native.differences import MANY, look
from deltaconvert.backends.reference import INTEGER, fill_unseen, nonfinite_of
from deltaconvert.gate import Watch


class FrameEdge(Edge):
    """A delta that is made from dense values. It also keeps the last values in the layout of the frame, so that both
    can be compared from end to end, and only changed pixels are converted to rows.

    watch: the gate that decides what is new, if there is one. nonfinite: see backends/reference.py."""

    threshold: float

    def __init__(self, kept: Map, watch: Watch | None):
        self.stored, self.watch = torch.empty(kept.shape, dtype=kept.dtype), watch
        super().__init__(kept)
        self.nonfinite = torch.zeros(kept.shape[0], dtype=torch.int64)
        self._asleep: Collection[int] = ()
        self._frame: Tensor | None = None  # the newest frame, if it had to be converted
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
        """Until the next call, the images of these streams are those of the frame before."""
        self._asleep = streams
        if self.watch is not None:
            self.watch.sleep(streams)

    def run(self, frame: Tensor) -> None:
        is_checked = frame.is_floating_point()  # bytes are finite
        frame = self._in_form(frame)
        changed = None
        if self.watch is not None:
            frame, changed = self._seen_by(self.watch, frame)
        if loops.FOUND and (self.threshold == 0 or changed is not None or frame.dtype in loops.DTYPES):
            self._look(frame, changed, is_checked)
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
            if is_checked:
                self.nonfinite += nonfinite_of(frame, changed)
        else:
            pixels = listed(changed)
            self._store(frame, pixels, is_checked)
            self.mark(changed, self.pixel_count, count, pixels)

    def _in_form(self, frame: Tensor) -> Tensor:
        """The frame in the type and layout of what is stored; it may be bytes, or channels last. The images of sleeping
        streams may be older ones."""
        if frame.dtype == self.stored.dtype and frame.is_contiguous():
            return frame
        if self._frame is None:
            self._frame = torch.empty_like(self.stored)
        for stream in self._awake:
            self._frame[stream].copy_(frame[stream])
        return self._frame

    def _look(self, frame: Tensor, changed: Tensor | None, is_checked: bool) -> None:
        """Compare, list, mark and store in one walk through the frame. changed: the mask, if a gate has judged the
        frame."""
        awake = torch.tensor(sorted(self._awake), dtype=torch.int64)
        mask = changed
        if mask is None:
            mask = torch.empty_like(self._none) if not self._asleep else torch.zeros_like(self._none)
        limit = None if changed is not None else self.threshold or None
        nonfinite = self.nonfinite if is_checked else None
        count, pixels = look(
            frame, self.stored, self.rows, mask, awake, limit, nonfinite, judged=changed is not None
        )
        if count:
            self.mark(mask, self.pixel_count, count, pixels)
        else:
            self.stand_still()

    def _store(self, frame: Tensor, pixels: Tensor, is_checked: bool) -> None:
        places = planar(pixels, frame.shape)
        new = frame.view(-1).index_select(0, places)
        self.stored.view(-1).index_copy_(0, places, new)
        rows = new.view(len(pixels), -1)
        self.rows.index_copy_(0, pixels, rows)
        if is_checked:
            broken = pixels[~rows.isfinite().all(1)] // self._none[0].numel()
            self.nonfinite += torch.bincount(broken, minlength=len(self.nonfinite))

    def _seen_by(self, watch: Watch, frame: Tensor) -> tuple[Tensor, Tensor]:
        """As Watch.look, stream by stream, without those that sleep."""
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
