"""What a server accepts: every number that a client could make large is bounded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from deltaconvert.errors import DeltaConvertError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
VIDEO_FORMATS = ("mov", "matroska", "avi")  # FFmpeg's names for those


class Refused(DeltaConvertError):
    """A request that the server does not take; `status` is HTTP's, and so are `headers` of the answer."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers

    def __reduce__(self) -> tuple[type[Refused], tuple[int, str, dict[str, str] | None]]:
        return Refused, (self.status, str(self), self.headers)  # it comes back from worker processes


def without_password(text: str) -> str:
    """An address, or a message that contains one, without its password."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


class Pace:
    """Whether the frames of a stream come no faster than its limit. Networks delay frames and deliver them in bunches,
    so a frame may come EARLY seconds early."""

    EARLY = 0.5

    def __init__(self, fps: float):
        self._apart, self._due = 1 / fps, 0.0

    def wait(self, now: float) -> float:
        """Seconds until a frame may come; 0 for one that comes now, which counts."""
        early = self._due - now
        if early > self.EARLY:
            return early - self.EARLY
        self._due = max(self._due, now) + self._apart
        return 0.0


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body. max_pixels: of a decoded image. max_fps: of one stream. max_streams: of a worker.

    files: the folder whose videos may be named by file URLs; None allows none. rtsp: whether cameras may be named.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 4096 * 4096
    max_fps: float = 120.0
    max_streams: int = 64
    files: Path | None = None
    rtsp: bool = True

    def stream_name(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise Refused(400, "a stream's name is 1 to 64 letters, digits, '.', '_' and '-'")
        return name

    def source(self, url: str) -> str:
        """What a URL means to video.read: an rtsp:// address, or a video below `files`."""
        if not url.isprintable():  # a file system or FFmpeg would raise on it
            raise Refused(400, "a source is an rtsp:// or a file:// URL, without control characters")
        if url.startswith("rtsp://"):
            if not self.rtsp:
                raise Refused(403, "this server takes no camera addresses")
            return url
        if not url.startswith("file://"):
            raise Refused(400, "a source is an rtsp:// or a file:// URL")
        if self.files is None:
            raise Refused(403, "this server takes no files: start it with --files FOLDER")
        folder = self.files.resolve()
        try:
            named = folder / unquote(url.removeprefix("file://")).lstrip("/")
            path = named.resolve()  # links may lead out of the folder
            there = path.is_relative_to(folder) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            raise Refused(404, "there is no such file in this server's folder")
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise Refused(403, f"a file is one of {', '.join(VIDEO_SUFFIXES)}")  # playlists name other files
        return str(path)
