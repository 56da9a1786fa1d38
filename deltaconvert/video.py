"""Reading and writing real video: the only module that imports PyAV (`av`), and only when it is used.

    with video.read("street.mp4") as frames, video.VideoWriter("out.mp4", frames.fps, (w, h)) as out:
        for frame in frames:            # uint8 (H, W, 3), RGB, 0..255
            out.write(frame)

Nothing ends quietly: a broken frame is a VideoError that names it, fewer frames than declared are a warning.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaconvert.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

URL_PREFIXES = ("rtsp://", "http://", "https://")
NETWORK_TIMEOUT = 10.0  # seconds without an answer; without it a dead camera would hang the program
LOST_FRAMES_TOLERATED = 2  # containers miscount by a frame or two (edit lists, delayed frames)
FPS_IF_UNKNOWN = 25.0  # raw streams and some cameras state no rate


def is_address(source: str | Path | int) -> bool:
    """Whether `source` comes over the network, from a camera that may come and go."""
    return str(source).startswith(URL_PREFIXES)


def read(source: str | Path | int, *, limit: int | None = None) -> VideoReader:
    """Open a video file, a stream or a camera for reading.

    source: a path; an address (rtsp://, http://, https://); or a camera number (0 or "0").
    limit: at most this many frames.
    """
    av = _import_av()
    if limit is not None and limit < 1:
        raise VideoError(f"{source}: limit is {limit}, but at least one frame must be read")
    target, options = _locate(source)
    try:
        container = av.open(target, **options)
    except av.FFmpegError as error:
        raise VideoError(_why_not_open(source, error)) from error
    try:
        return VideoReader(container, str(source), limit)
    except BaseException:
        container.close()
        raise


class VideoReader(Iterator[Tensor]):
    """The frames of a video in order, each a new uint8 tensor (height, width, 3), RGB; a context manager too.

    width, height: of the frames, in pixels, upright (a phone's rotation mark is applied).
    fps: frames a second.    frames: how many there should be, None where nothing says so (live sources).
    source: as it was given.
    """

    def __init__(self, container: InputContainer, source: str, limit: int | None) -> None:
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
        """The first frame, before it is taken: to measure on it what the frames are to be run with."""
        if self._count or self._next is None:
            raise VideoError(f"{self.source}: its first frame is taken already")
        return self._next

    def close(self) -> None:
        """Let go of the file or the camera; iterating on gives no more frames."""
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
        except _import_av().FFmpegError as error:
            good = f"the {number} before it are good: read them with limit={number}, or " if number else ""
            raise VideoError(
                f"{self.source}: frame {number} cannot be decoded ({_reason(error)}); "
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


class VideoWriter:
    """Write frames to an H.264 file (libx264, yuv420p: plays everywhere), as a context manager.

    path: its ending picks the container (.mp4, .mkv, .mov, ...).    size: (width, height) of the frames.
    crf: quality, 0 lossless to 51, smaller is better.

    An odd width or height is padded by repeating the last column or row: yuv420p shares colour in 2x2 blocks.
    The file gets its name only when it is complete: until then, and after an error, an old one stays.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int], *, crf: int = 20) -> None:
        av = _import_av()
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
                f"{path}: cannot be written as H.264 ({_reason(error)}); "
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
        picture = _import_av().VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
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
        except _import_av().FFmpegError as error:
            self.discard()
            reason = f"frame {self.frames} cannot be written ({_reason(error)}); is the disk full?"
            raise VideoError(f"{self.path}: {reason}") from error

    def discard(self) -> None:
        """Give up: nothing is written, and an old file stays."""
        self._closed = True
        with contextlib.suppress(Exception):  # a half-made file may not close cleanly; it goes anyway
            self._container.close()
        self._part.unlink(missing_ok=True)


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise VideoError('reading and writing video needs PyAV: pip install "deltaconvert[video]"') from error
    return av


def _locate(source: str | Path | int) -> tuple[str, dict[str, Any]]:
    """What to hand to av.open for a source, and its options."""
    text = str(source)
    if text.isdecimal():
        return _camera(int(text))
    if is_address(text):
        # TCP: over UDP a busy camera loses packets, and each smears the picture, which looks like change.
        options = {"rtsp_transport": "tcp"} if text.startswith("rtsp://") else {}
        return text, {"options": options, "timeout": NETWORK_TIMEOUT}
    if "://" in text:
        raise VideoError(f"{text}: an address must start with {', '.join(URL_PREFIXES)}")
    path = Path(text)
    if path.is_dir():
        raise VideoError(f"{text}: is a folder; give a video file in it")
    if not path.exists():
        raise VideoError(f"{text}: no such file (looked in {path.absolute().parent}); check the name")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{text}: the file is empty; copy or record it again")
    return text, {}


def _camera(index: int) -> tuple[str, dict[str, Any]]:
    if sys.platform == "darwin":
        return str(index), {"format": "avfoundation", "options": {"framerate": "30"}}
    if sys.platform == "win32":  # DirectShow opens by name only
        devices = [d for d in _import_av().enumerate_input_devices("dshow") if "video" in d.media_types]
        if index >= len(devices):
            raise VideoError(f"camera {index}: not there; this machine has {len(devices)} cameras")
        return f"video={devices[index].name}", {"format": "dshow"}
    device = Path(f"/dev/video{index}")
    if not device.exists():
        found = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "no camera at all"
        raise VideoError(f"camera {index}: {device} does not exist; this machine has {found}")
    return str(device), {"format": "v4l2"}


def _why_not_open(source: str | Path | int, error: Exception) -> str:
    text, reason = str(source), _reason(error)
    if text.isdecimal():
        return f"camera {text}: cannot be opened ({reason}); is another program using it? may you read it?"
    if is_address(text):
        if type(error).__name__ == "ExitError":
            reason = f"no answer within {NETWORK_TIMEOUT:.0f} s"
        return f"{text}: cannot be opened ({reason}); check the address, the password and the network"
    if isinstance(error, ValueError):
        return f"{text}: not a video, or damaged or cut short ({reason}); copy or make it anew"
    return f"{text}: cannot be opened ({reason})"


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


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=5)  # the loop that reads
