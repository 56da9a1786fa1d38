"""PyAV, which brings FFmpeg, imported when it is needed."""

from __future__ import annotations

from types import ModuleType

from deltaconvert.errors import VideoError


def import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise VideoError('reading and writing video needs PyAV: pip install "deltaconvert[video]"') from error
    return av


def reason_of(error: Exception) -> str:
    """FFmpeg's reason for an error, without the file's name."""
    return str(getattr(error, "strerror", None) or error)
