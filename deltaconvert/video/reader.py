"""Frames of a video, one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.errors import VideoError
from deltaconvert.video.ffmpeg import import_av, reason_of
from deltaconvert.video.sources import is_address, is_live, locate, why_not_open

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

LOST_FRAMES_TOLERATED = 2  # containers miscount by a frame or two (edit lists, delayed frames)
FPS_IF_UNKNOWN = 25.0  # raw streams and some cameras state no rate


def read(
    source: str | Path | int,
    *,
    limit: int | None = None,
    max_pixels: int | None = None,
    formats: Sequence[str] = (),
) -> VideoReader:
    """Open a video file, a stream or a camera for reading.

    source: a path; an address (rtsp://, http://, https://); or a camera number (0 or "0").
    limit: at most this many frames. max_pixels: of a frame; a larger one is a VideoError before it is decoded.
    formats: FFmpeg's names of the containers that a file may be, which then opens no other files; () for any. FFmpeg
    goes by what is in a file, not by its name, and what it takes for a playlist names others.
    """
    av = import_av()
    if limit is not None and limit < 1:
        raise VideoError(f"{source}: limit is {limit}, but at least one frame must be read")
    target, options = locate(source)
    given = options.setdefault("options", {})
    if max_pixels is not None:
        given["max_pixels"] = str(max_pixels)  # as FFmpeg opens a video it decodes frames of it
    if formats and not is_address(source):
        given |= {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"}
    try:
        container = av.open(target, **options)
    except av.FFmpegError as error:
        raise VideoError(why_not_open(source, error)) from error
    try:
        return VideoReader(container, str(source), limit, max_pixels)
    except BaseException:
        container.close()
        raise


class VideoReader(Iterator[Tensor]):
    """The frames of a video in order, each a new uint8 tensor (height, width, 3), RGB; a context manager too.

    width, height: of the frames, in pixels, upright (a phone's rotation mark is applied).
    fps: frames a second.
    frames: how many there should be; None if that is not known (live sources).
    source: as it was given.
    """

    def __init__(
        self, container: InputContainer, source: str, limit: int | None, max_pixels: int | None = None
    ) -> None:
        self.source = source
        self._container = container
        self._limit = limit
        self._count = 0
        self._warned_damage = False
        if container.format.name == "tty":  # FFmpeg plays any text file as a video of a terminal
            raise VideoError(f"{source}: not a video but text; give a video file")
        if not container.streams.video:
            found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise VideoError(f"{source}: has no video stream (found: {found}); give a video file")
        stream = container.streams.video[0]
        if max_pixels is not None:
            if stream.width * stream.height > max_pixels:
                size = f"{stream.width}x{stream.height}"
                raise VideoError(f"{source}: its frames have {size} pixels, more than {max_pixels}")
            stream.codec_context.options = {"max_pixels": str(max_pixels)}  # they may grow
        # Frame threads swallow errors near a file's end (how many depends on the core count) and hold live
        # frames back; one thread decodes 1080p in about the time that the conversion to RGB takes.
        stream.thread_type = "SLICE"
        self.fps = float(stream.average_rate or stream.guessed_rate or FPS_IF_UNKNOWN)
        self._declared, self._slack = _declared_frames(container, self.fps)
        self.frames = self._declared
        if self.frames is not None and limit is not None:
            self.frames = min(self.frames, limit)
        self._decoded = container.decode(stream)
        # The first frame is read now, so that an unreadable video fails where it is opened.
        self._next = self._decode()
        if self._next is None:
            raise VideoError(f"{source}: not one frame in it can be decoded; copy or make it anew")
        self.height, self.width = self._next.shape[:2]

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> Tensor:
        frame = self._next
        try:
            if frame is None and self._limit != self._count:
                frame = self._decode()
        finally:
            if frame is None:  # the end or an error
                self.close()
        if frame is None:
            raise StopIteration
        self._next = None
        self._count += 1
        return frame

    def peek(self) -> Tensor:
        """The first frame without taking it, for what has to be measured on a frame before the run."""
        if self._count or self._next is None:
            raise VideoError(f"{self.source}: its first frame is taken already")
        return self._next

    def close(self) -> None:
        """Close the file or the camera; iterating on gives no more frames."""
        self._next = None
        self._decoded = iter(())
        self._declared = None
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _decode(self) -> Tensor | None:
        """The next frame, or None at the end; errors name the frame."""
        number = self._count
        try:
            frame = next(self._decoded, None)
        except import_av().FFmpegError as error:
            if is_live(self.source):
                raise VideoError(
                    f"camera {self.source}: lost at frame {number} ({reason_of(error)}); "
                    "check its cable, its power and the network"
                ) from error
            good = f"the {number} before it are good: read them with limit={number}, or " if number else ""
            raise VideoError(
                f"{self.source}: frame {number} cannot be decoded ({reason_of(error)}); "
                f"{good}copy or make the file anew"
            ) from error
        if frame is None:
            self._check_all_there(number)
            return None
        if frame.is_corrupt and not self._warned_damage:
            self._warned_damage = True  # once a video: a bad radio link would flood the log
            _warn(f"{self.source}: frame {number} is damaged, the decoder filled it in (told once a video)")
        tensor = _to_tensor(frame)
        if number and tensor.shape != (self.height, self.width, 3):
            raise VideoError(
                f"{self.source}: the frame size changes at frame {number}, from {self.width}x{self.height} "
                f"to {tensor.shape[1]}x{tensor.shape[0]}; read the first part with limit={number}, "
                "or scale the video to one size"
            )
        return tensor

    def _check_all_there(self, number: int) -> None:
        # FFmpeg ends a file that was cut short without a word.
        if self._declared is not None and 0 < number < self._declared - self._slack:
            _warn(
                f"{self.source}: {number} of {self._declared} frames decoded; "
                "the file is cut short or damaged (an unfinished download or recording?)"
            )


def _declared_frames(container: InputContainer, fps: float) -> tuple[int | None, int]:
    """How many frames a file says it has, and how many may miss before that is worth a warning."""
    stream = container.streams.video[0]
    if stream.frames:
        return stream.frames, LOST_FRAMES_TOLERATED
    seconds = None
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:  # of several streams it is the longest one's
        seconds = container.duration / 1e6
    if seconds is None or seconds <= 0:
        return None, 0
    frames = max(1, round(seconds * fps))
    return frames, max(LOST_FRAMES_TOLERATED, frames // 20)  # an estimate: rates and durations are rounded


def _to_tensor(frame: VideoFrame) -> Tensor:
    """A decoded frame as uint8 (H, W, 3), upright."""
    rgb = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    turns = round(frame.rotation / 90) % 4  # the display matrix's angle, counter-clockwise as in rot90
    return torch.rot90(rgb, turns, (0, 1)).contiguous() if turns else rgb


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=5)  # the loop that reads
