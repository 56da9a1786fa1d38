"""What a server accepts. Every number that a client could push is bounded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deltaconvert.errors import DeltaConvertError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


class Refused(DeltaConvertError):
    """A request that the server does not take; `status` is HTTP's."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[Refused], tuple[int, str]]:
        return Refused, (self.status, str(self))  # it comes back from worker processes


def without_password(text: str) -> str:
    """An address, or a message with one, as others may see it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


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
        if url.startswith("rtsp://"):
            if not self.rtsp:
                raise Refused(403, "this server takes no camera addresses")
            return url
        if not url.startswith("file://"):
            raise Refused(400, "a source is an rtsp:// or a file:// URL")
        if self.files is None:
            raise Refused(403, "this server takes no files: start it with --files FOLDER")
        folder = self.files.resolve()
        path = (folder / url.removeprefix("file://").lstrip("/")).resolve()  # links may lead out
        if not path.is_relative_to(folder) or not path.is_file():
            raise Refused(404, "there is no such file in this server's folder")
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise Refused(403, f"a file is one of {', '.join(VIDEO_SUFFIXES)}")  # playlists name other files
        return str(path)
