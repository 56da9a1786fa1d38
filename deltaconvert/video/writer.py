"""Frames into a video file."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaconvert.errors import VideoError
from deltaconvert.video.ffmpeg import import_av, reason_of

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class VideoWriter:
    """Write frames to an H.264 file (libx264, yuv420p: plays everywhere), as a context manager.

    path: its ending is the container (.mp4, .mkv, .mov, ...).
    size: (width, height) of the frames.
    crf: quality, from 0 (lossless) to 51; smaller is better.

    An odd width or height is padded by repeating the last column or row: yuv420p shares colour in 2x2 blocks.
    The file gets its name only when it is complete: until then, and after an error, an old one stays.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int], *, crf: int = 20) -> None:
        av = import_av()
        self.path = Path(path)
        self.width, self.height = size
        self.frames = 0
        self._closed = False
        if fps <= 0 or min(size) < 1:
            raise VideoError(f"{path}: cannot write {self.width}x{self.height} at {fps} frames a second")
        if not self.path.parent.is_dir():
            raise VideoError(f"{path}: the folder {self.path.parent} does not exist; create it first")
        # Beside the target, so that the rename at the end stays on one disk; same ending, FFmpeg goes by it.
        self._part = self.path.with_name(f".{self.path.stem}.{os.urandom(4).hex()}.part{self.path.suffix}")
        try:
            self._container = av.open(str(self._part), "w")
            self._stream: Any = self._container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)}
            )
        except (av.FFmpegError, ValueError) as error:
            self.discard()
            raise VideoError(
                f"{path}: cannot be written as H.264 ({reason_of(error)}); "
                "use a name ending in .mp4, in a folder you may write to"
            ) from error
        self._stream.width = self.width + self.width % 2
        self._stream.height = self.height + self.height % 2
        self._stream.pix_fmt = "yuv420p"
        # Say which matrix PyAV converts with, else players guess another one for HD and the colours shift.
        self._stream.codec_context.colorspace = 6  # SMPTE 170M, the BT.601 matrix
        self._stream.codec_context.color_range = 1  # 16..235

    def write(self, frame: Tensor) -> None:
        """Append one frame: uint8 (height, width, 3), RGB, on any device."""
        if frame.dtype != torch.uint8 or tuple(frame.shape) != (self.height, self.width, 3):
            raise VideoError(
                f"{self.path}: frame {self.frames} is {frame.dtype} {tuple(frame.shape)}, "
                f"the writer was opened for torch.uint8 {(self.height, self.width, 3)}"
            )
        if self._closed:
            raise VideoError(f"{self.path}: is closed, nothing can be added; open a new VideoWriter")
        frame = frame.cpu()
        if self.width % 2:
            frame = torch.cat((frame, frame[:, -1:]), 1)
        if self.height % 2:
            frame = torch.cat((frame, frame[-1:]), 0)
        picture = import_av().VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        self._mux(picture)
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.frames:
                raise VideoError(f"{self.path}: no frame was written, so there is no video to save")
            self._mux(None)
            self._container.close()
        except BaseException:
            self.discard()
            raise
        os.replace(self._part, self.path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _mux(self, picture: VideoFrame | None) -> None:
        """Encode a frame (None: what the encoder still holds) and append it."""
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except import_av().FFmpegError as error:
            self.discard()
            reason = f"frame {self.frames} cannot be written ({reason_of(error)}); is the disk full?"
            raise VideoError(f"{self.path}: {reason}") from error

    def discard(self) -> None:
        """Write nothing; an old file stays."""
        self._closed = True
        with contextlib.suppress(Exception):  # a half-made file may not close cleanly; it goes anyway
            self._container.close()
        self._part.unlink(missing_ok=True)
