"""The server as its users start it, from the command line: under a load generator, and seen by a browser."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import urllib.request

import pytest
from serving import PATIENCE, ask, frame, png
from typer.testing import CliRunner

from deltaconvert.cli import app

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WRK = shutil.which("wrk")


def test_it_ends_though_somebody_looks_on(server):
    """Ctrl-C: a live picture has no end of its own."""
    process, address = server
    ask(address, "/streams/a/frames", "POST", png(frame(0)), **{"Content-Type": "image/png"})
    with urllib.request.urlopen(f"{address}/streams/a/live") as live:
        assert live.status == 200 and live.headers["X-Accel-Buffering"] == "no"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) in (0, -signal.SIGINT)


def test_a_viewer_who_does_not_read(server):
    """His live picture waits in a full socket: frames are answered, and others see new pictures."""
    _, address = server
    host, port = address.removeprefix("http://").split(":")

    def post(number):
        answer = ask(
            address, "/streams/a/frames", "POST", png(frame(number)), **{"Content-Type": "image/png"}
        )
        assert json.loads(answer)["frame"] == number

    post(1)
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        viewer.connect((host, int(port)))
        viewer.sendall(b"GET /streams/a/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        seen = set()
        for number in range(2, 402):
            post(number)
            if number % 100 == 0:
                seen.add(ask(address, "/streams/a/picture"))
    assert len(seen) == 4


def test_an_address_that_is_taken(file):
    """It is said at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = CliRunner().invoke(app, ["serve", str(file), "--port", str(port)])
    assert found.exit_code == 2 and f"127.0.0.1:{port} cannot be listened on" in found.output


@pytest.mark.slow
@pytest.mark.skipif(WRK is None, reason="needs wrk (apt install wrk)")
def test_under_load(address, tmp_path):
    """Four connections for five seconds: every answer is a result, none is lost, memory per stream is bounded."""
    (tmp_path / "frame.png").write_bytes(png(frame(0)))
    script = tmp_path / "post.lua"
    script.write_text(
        f"""
        local file = io.open("{tmp_path}/frame.png", "rb")
        wrk.method, wrk.body = "POST", file:read("*a")
        wrk.headers["Content-Type"] = "image/png"
        local count = 0
        request = function()
          count = count + 1
          return wrk.format(nil, "/streams/camera" .. (count % 3) .. "/frames")
        end
        """
    )
    command = [WRK, "-t1", "-c4", "-d5s", "--timeout", "20s", "-s", str(script), address]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    print(said)
    assert "Non-2xx" not in said and "Socket errors" not in said
    stats = json.loads(ask(address, "/streams"))
    assert sorted(stats) == ["camera0", "camera1", "camera2"]
    assert all(s["frames"] > 0 and s["failed"] == 0 and s["density"] == 0 for s in stats.values())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_seen_by_a_browser(address, tmp_path):
    """The page shows all streams, more than a browser has connections: their names, numbers and pictures are in the
    document after the scripts ran."""
    for place in range(8):
        ask(
            address,
            f"/streams/road{place}",
            "PUT",
            json.dumps({"url": "file:///clip.mp4", "loop": True}).encode(),
        )
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    command = [
        CHROMIUM,
        *options.split(),
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
    ]
    command += ["--virtual-time-budget=8000", "--timeout=20000", "--dump-dom", address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "8 streams" in page
    for place in range(8):
        assert f'src="streams/road{place}/picture?&amp;at=' in page
    assert all("frames" in caption for caption in page.split("<figcaption>")[1:])
    assert ask(address, "/streams/road0/picture").startswith(b"\xff\xd8")
