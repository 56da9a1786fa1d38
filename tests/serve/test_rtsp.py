"""A live RTSP camera, from GStreamer's server, through `deltaconvert serve` and the pool; it dies and comes back."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
from serving import ask, free_port, until

from deltaconvert import video
from deltaconvert.errors import VideoError

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

PYTHON = "/usr/bin/python3"  # Debian's, which has the bindings


def why_not() -> str:
    needs = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); "
    needs += "assert all(Gst.ElementFactory.find(name) for name in ('x264enc', 'rtph264pay'))"
    try:
        found = subprocess.run([PYTHON, "-c", needs], capture_output=True).returncode == 0
    except OSError:
        found = False
    packages = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    return "" if found else f"needs GStreamer's RTSP server (apt install {packages})"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]


@pytest.fixture
def camera():
    """A function that starts the camera (once more) at the same address; and that address."""
    port, running = free_port(), []

    def start():
        script = Path(__file__).with_name("rtsp_camera.py")
        running.append(subprocess.Popen([PYTHON, str(script), str(port)], stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout.readline() == "serving\n"
        return running[-1]

    yield start, f"rtsp://127.0.0.1:{port}/camera"
    for process in running:
        process.kill()
        process.wait()


def test_read(camera):
    start, url = camera
    with pytest.raises(VideoError, match="cannot be opened"):
        video.read(url)
    start()
    with video.read(url) as frames:
        assert (frames.width, frames.height, frames.frames) == (64, 48, None)
        seen = [next(frames) for _ in range(5)]
    assert any((a != b).any() for a, b in itertools.pairwise(seen)), "the ball moves"


def test_through_the_server(camera, address):
    """Its frames are computed, little of them changes, and after it died and came back there are more."""
    start, url = camera
    process = start()
    url = url.replace("//", "//user:secret@")
    ask(address, "/streams/gate", "PUT", json.dumps({"url": url}).encode())

    def stats():
        return json.loads(ask(address, "/streams"))["gate"]

    until(lambda: stats()["frames"] >= 10)
    assert 0 < stats()["density"] < 0.5 and "secret" not in json.dumps(stats())
    process.kill()
    process.wait()
    until(lambda: "lost" in stats()["source"])
    assert "secret" not in stats()["source"]
    assert json.loads(ask(address, "/streams/gate/result"))["outputs"], "the last result stays"
    before = stats()["frames"]
    start()
    until(lambda: stats()["frames"] >= before + 10)
    assert "lost" not in stats()["source"] and stats()["failed"] == 0
