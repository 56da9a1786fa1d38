"""Where frames come from: files, addresses, cameras, and why one of them cannot be opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deltaconvert.errors import VideoError
from deltaconvert.video.ffmpeg import import_av, reason_of

URL_PREFIXES = ("rtsp://", "http://", "https://")
NETWORK_TIMEOUT = 10.0  # seconds without an answer; without it a dead camera would hang the program


def is_address(source: str | Path | int) -> bool:
    """Whether `source` comes over the network, from a camera that may come and go."""
    return str(source).startswith(URL_PREFIXES)


def is_live(source: str | Path | int) -> bool:
    """Whether `source` is a camera, whose frames come once: one on this machine or one over the network."""
    return is_address(source) or str(source).isdecimal()


def locate(source: str | Path | int) -> tuple[str, dict[str, Any]]:
    """The arguments of av.open for a source."""
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
        devices = [d for d in import_av().enumerate_input_devices("dshow") if "video" in d.media_types]
        if index >= len(devices):
            raise VideoError(f"camera {index}: not there; this machine has {len(devices)} cameras")
        return f"video={devices[index].name}", {"format": "dshow"}
    device = Path(f"/dev/video{index}")
    if not device.exists():
        found = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "no camera at all"
        raise VideoError(f"camera {index}: {device} does not exist; this machine has {found}")
    return str(device), {"format": "v4l2"}


def why_not_open(source: str | Path | int, error: Exception) -> str:
    """A message for the user whose source raised `error`, with what to check."""
    text, reason = str(source), reason_of(error)
    if text.isdecimal():
        return f"camera {text}: cannot be opened ({reason}); is another program using it? may you read it?"
    if is_address(text):
        if type(error).__name__ == "ExitError":
            reason = f"no answer within {NETWORK_TIMEOUT:.0f} s"
        return f"{text}: cannot be opened ({reason}); check the address, the password and the network"
    if isinstance(error, ValueError):
        return f"{text}: not a video, or damaged or cut short ({reason}); copy or make it anew"
    return f"{text}: cannot be opened ({reason})"
