"""The door: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import shutil
import threading
import zlib

import pytest
import torch

pytest.importorskip("starlette", reason="serving needs the extra `serve`")
pytest.importorskip("httpx", reason="Starlette's test client needs httpx")

import httpx
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import HEIGHT, PATIENCE, WIDTH, frame, png, until
from starlette.testclient import TestClient

from deltaconvert.cli.serve import HERE
from deltaconvert.serve import app as module
from deltaconvert.serve.app import _Door, app
from deltaconvert.serve.fleet import Local
from deltaconvert.serve.images import decode, jpeg
from deltaconvert.serve.limits import Limits, Pace, Refused

PNG, RAW = {"content-type": "image/png"}, {"content-type": "application/octet-stream"}


@pytest.fixture
def serving(file):
    """TestClients of servers with other limits; they close at the end."""
    clients = []

    def make(token=None, headers=None, max_fps=float("inf"), **limits):
        # But for the test of it, requests come as fast as they can.
        limits = Limits(max_fps=max_fps, **limits)
        client = TestClient(app(Local(file=file, streams=2, limits=limits), limits, token), headers=headers)
        clients.append(client.__enter__())
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def values(answer):
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return torch.tensor(output["values"])


def test_frames_in_results_out(serving, expected):
    client = serving()
    for seed, (kind, data) in enumerate(
        [(PNG, png), (RAW, lambda image: image.numpy().tobytes())] * 2, start=1
    ):
        image = frame(seed)
        answer = client.post("/streams/door/frames", content=data(image), headers=kind)
        torch.testing.assert_close(values(answer), expected(image))
        assert answer.json()["frame"] == seed
        assert client.get("/streams/door/result").json() == answer.json()
    best = expected(image).topk(5)
    top = answer.json()["outputs"][0]["top"]
    assert [entry["class"] for entry in top] == best.indices.tolist()


def test_a_jpeg_and_another_size(serving):
    client, out = serving(), io.BytesIO()
    Image.fromarray(frame(0, 30, 100).numpy()).save(out, "JPEG")
    answer = client.post("/streams/a/frames", content=out.getvalue(), headers={"content-type": "image/jpeg"})
    assert values(answer).isfinite().all()
    # The size changes in mid-stream.
    again = client.post("/streams/a/frames", content=png(frame(1)), headers=PNG)
    assert again.json()["frame"] == 2


def test_16_bits_of_grey():
    """As a thermal camera sends them: their high bytes, as of 16 bits of each colour."""
    grey = torch.arange(12 * 256, dtype=torch.int32).view(12, 256) * 21
    out = io.BytesIO()
    Image.fromarray(grey.numpy().astype("uint16")).save(out, "PNG")
    image = decode(out.getvalue(), "image/png", (12, 256), Limits())
    assert torch.equal(image, (grey >> 8).to(torch.uint8)[..., None].expand(-1, -1, 3))


def test_an_image_that_is_marked_as_turned():
    """It stands upright, as in a browser."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6  # a quarter turn clockwise
    Image.fromarray(frame(0).numpy()).save(out, "PNG", exif=exif)
    image = decode(out.getvalue(), "image/png", (HEIGHT, WIDTH), Limits())
    assert torch.equal(image, torch.rot90(frame(0), -1, (0, 1)))


def test_streams_stats_and_metrics(serving):
    client = serving()
    for name in ("a", "b", "c"):  # more than there is room for: the pool grows
        client.post(f"/streams/{name}/frames", content=png(frame(0)), headers=PNG)
    client.post("/streams/a/frames", content=png(frame(0)), headers=PNG)
    stats = client.get("/streams").json()
    assert {name: s["frames"] for name, s in stats.items()} == {"a": 2, "b": 1, "c": 1}
    assert stats["a"]["density"] == 0 and stats["a"]["state_bytes"] > 0
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    samples = {s.labels["stream"]: s.value for s in families["deltaconvert_stream_frames"].samples}
    assert samples == {"a": 2.0, "b": 1.0, "c": 1.0}
    for name in ("density", "latency", "latency_p99", "dropped", "failed", "nonfinite", "state_bytes"):
        assert len(families[f"deltaconvert_stream_{name}"].samples) == 3
    assert client.get("/healthz").json() == {"workers": [True]}
    assert client.post("/streams/b/reset").status_code == 204
    assert client.get("/streams/b").json()["frames"] == 1
    assert client.delete("/streams/b").status_code == 204
    assert client.get("/streams/b").status_code == 404
    assert sorted(client.get("/streams").json()) == ["a", "c"]
    assert client.get("/streams/b/result").status_code == 404


def test_a_video_of_the_server(serving, clip, file):
    client = serving(files=clip.parent)
    assert client.put("/streams/road", json={"url": "file:///clip.mp4"}).status_code == 201

    def is_over():  # the last frame may still be on its way through the network when its file has ended
        stats = client.get("/streams").json()["road"]
        return stats["source"] is None and stats["frames"] + stats["dropped"] == 12

    until(is_over)
    (clip.parent / "link.mp4").symlink_to(file)
    (clip.parent / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (clip.parent / "text.mp4").write_text("no video")
    (clip.parent / "names_another.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    shutil.copy(clip, clip.parent / "a clip 100%.mp4")
    for url, status in (
        ("file:///nothing.mp4", 404),
        ("file:///../../etc/passwd", 404),
        ("file:///link.mp4", 404),  # leads out of the folder
        ("file:///list.m3u8", 403),
        ("file:///text.mp4", 422),
        ("file:///names_another.mp4", 422),  # whatever FFmpeg finds in it
        ("file:///%2e%2e/%2e%2e/etc/passwd", 404),
        ("file:///%00.mp4", 404),
        (f"file:///{'long' * 2000}.mp4", 404),
        ("file:///\0.mp4", 400),
        ("file:///\ud800.mp4", 400),
        ("rtsp://camera/\n", 400),
        ("file:///a%20clip%20100%25.mp4", 201),
        ("http://localhost/clip.mp4", 400),
        ("/etc/passwd", 400),
    ):
        answer = client.put("/streams/road", content=json.dumps({"url": url}))
        assert (url, answer.status_code) == (url, status), answer.text
        assert str(clip.parent) not in answer.text
    assert serving().put("/streams/a", json={"url": "file:///clip.mp4"}).status_code == 403
    answer = serving(files=clip.parent, max_pixels=WIDTH * HEIGHT - 1).put(
        "/streams/a", json={"url": "file:///clip.mp4"}
    )
    assert answer.status_code == 422 and f"its frames have {WIDTH}x{HEIGHT} pixels" in answer.json()["error"]
    assert serving(rtsp=False).put("/streams/a", json={"url": "rtsp://camera"}).status_code == 403


def bomb(side=30000):
    """A PNG of a few kilobytes that claims 900 million pixels."""

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"", PNG, 422),
        (b"nonsense", PNG, 422),
        (png(frame(0))[:200], PNG, 422),
        (jpeg(frame(0))[:700], {"content-type": "image/jpeg"}, 422),
        (png(frame(0)), {"content-type": "image/jpeg"}, 422),
        (png(frame(0)), {"content-type": "text/html"}, 415),
        (b"123", RAW, 422),
        (bomb(), PNG, 413),
        (bytes(200_000), RAW, 413),
    ],
)
def test_refused_and_nobody_is_harmed(serving, expected, data, headers, status):
    client = serving(max_bytes=100_000)
    client.post("/streams/door/frames", content=png(frame(0)), headers=PNG)
    answer = client.post("/streams/door/frames", content=data, headers=headers)
    assert answer.status_code == status and answer.json()["error"]
    again = client.post("/streams/door/frames", content=png(frame(1)), headers=PNG)
    torch.testing.assert_close(values(again), expected(frame(1)))


def test_what_was_refused_takes_no_place(serving, expected, clip):
    """A slip in a stream's first request: it may be tried again, and its place is free."""
    client = serving(max_streams=1, files=clip.parent)
    (clip.parent / "text.mp4").write_text("no video")
    assert client.post("/streams/a/frames", content=b"nonsense", headers=PNG).status_code == 422
    assert client.post("/streams/b/frames", content=png(frame(0)), headers={}).status_code == 415
    assert client.put("/streams/c", json={"url": "file:///text.mp4"}).status_code == 422
    assert client.put("/streams/d", json={"worker": 7}).status_code == 400
    assert client.get("/streams").json() == {}
    answer = client.post("/streams/e/frames", content=png(frame(1)), headers=PNG)
    torch.testing.assert_close(values(answer), expected(frame(1)))
    # One that was here stays, whatever comes later.
    assert client.post("/streams/e/frames", content=b"nonsense", headers=PNG).status_code == 422
    assert client.put("/streams/e", json={"url": "file:///text.mp4"}).status_code == 422
    assert client.get("/streams/e/result").json()["frame"] == 1


def test_a_camera_that_does_not_answer_yet(serving, clip):
    """It is taken in, and its state is told; where another one is read, that one goes on."""
    client = serving(files=clip.parent)
    nobody = {"url": "rtsp://user:secret@127.0.0.1:9/nobody"}
    answer = client.put("/streams/gate", json=nobody)
    assert answer.status_code == 201
    source = answer.json()["source"]
    assert source.startswith("no answer yet, tried again: rtsp://127.0.0.1:9/nobody: cannot be opened")
    assert client.get("/streams/gate").json()["source"] == source
    assert client.get("/streams/gate/result").json() == {}
    assert client.put("/streams/gate", json={"url": "file:///clip.mp4", "loop": True}).status_code == 201
    until(lambda: client.get("/streams/gate").json()["frames"] > 0)
    assert client.put("/streams/gate", json=nobody).status_code == 422
    assert client.get("/streams/gate").json()["source"] == "clip.mp4"


def test_a_new_stream_that_several_bring(file, expected):
    """One of them brings no image: the others have their results, whoever comes first."""
    fleet, limits = Local(file=file, limits=Limits()), Limits(max_fps=float("inf"))
    transport = httpx.ASGITransport(app(fleet, limits))

    async def scenario():
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            bodies = [b"nonsense", png(frame(0)), b"nonsense", png(frame(0))]
            posts = [client.post("/streams/a/frames", content=body, headers=PNG) for body in bodies]
            return await asyncio.gather(*posts)

    answers = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [422, 200, 422, 200]
    torch.testing.assert_close(values(answers[1]), expected(frame(0)))
    assert list(fleet._worker.stats()) == ["a"]
    fleet.close()


def test_a_stream_that_was_dropped_beside_a_frame_of_it(file):
    """Its next frame is told so, the one behind takes it in anew."""
    fleet = Local(file=file, limits=Limits())
    with TestClient(app(fleet, Limits(max_fps=float("inf")))) as client:
        post = lambda: client.post("/streams/a/frames", content=png(frame(0)), headers=PNG)
        assert post().json()["frame"] == 1
        fleet._worker.drop("a")
        assert post().status_code == 404
        assert post().json()["frame"] == 1


def test_limits(serving):
    client = serving(max_streams=2, max_fps=1e-6)  # so that no machine is too slow to be too fast
    post = lambda name: client.post(f"/streams/{name}/frames", content=png(frame(0)), headers=PNG)
    assert [post(name).status_code for name in ("a", "b", "c")] == [200, 200, 503]
    refused = post("a")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert post("x" * 65).status_code == 400 and post("a%20b").status_code == 400
    assert client.put("/streams/a", content=b"[]").status_code == 400
    assert client.put("/streams/a", json={"url": "file:///a.mp4", "loop": "no"}).status_code == 400
    for method, path, status in (("GET", "/nothing", 404), ("POST", "/streams", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status and path in answer.json()["error"]
    assert client.put("/streams/a", content=b"{").status_code == 400
    assert client.put("/streams/a", json={"worker": "0"}).status_code == 400
    answer = client.put("/streams/d", json={"uri": "file:///clip.mp4"})
    assert answer.status_code == 400 and "'uri'" in answer.json()["error"]
    assert "d" not in client.get("/streams").json()
    assert client.put("/streams/a", json={"worker": 0}).status_code == 201
    assert client.put("/streams/a", json={"worker": 1}).status_code == 400


def test_frames_that_come_in_bunches():
    """A camera of 30 frames a second that a network holds up for half a second is no faster than 30; one of 40 is."""
    pace, times = Pace(30), [place / 30 for place in range(300)]
    assert all(pace.wait(max(time, math.ceil(time * 2) / 2)) == 0 for time in times)
    pace = Pace(30)
    taken = sum(pace.wait(place / 40) == 0 for place in range(400))
    assert 300 <= taken <= 316
    assert 0 < max(pace.wait(10.0) for _ in range(2)) < 1 / 30 + 1e-9


class Arriving:
    """A request whose body comes when it is told."""

    def __init__(self, size, goes_on=None):
        self.size, self.goes_on = size, goes_on

    async def stream(self):
        yield bytes(self.size)
        if self.goes_on is not None:
            await self.goes_on.wait()


def test_what_bodies_may_hold(monkeypatch):
    """All together a bounded number of bytes, each for a bounded time; then there is room again."""

    async def scenario():
        door, goes_on = _Door(None, Limits(max_bytes=100)), asyncio.Event()

        async def hold(request):
            async with door._body(request) as body:
                return len(body)

        held = [asyncio.create_task(hold(Arriving(100, goes_on))) for _ in range(module.BODIES)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="holds too many") as caught:
            await hold(Arriving(1))
        assert caught.value.status == 503
        goes_on.set()
        assert await asyncio.gather(*held) == [100] * module.BODIES
        assert await hold(Arriving(100)) == 100
        monkeypatch.setattr(module, "ARRIVES", 0.01)
        with pytest.raises(Refused, match="took more than") as caught:
            await hold(Arriving(1, asyncio.Event()))
        assert caught.value.status == 408 and door._held == 0

    asyncio.run(scenario())


def test_names_of_other_hosts(file):
    """A page of another name, whose server sends browsers to this machine, learns nothing and changes nothing."""
    served = app(Local(file=file, limits=Limits()), Limits(), hosts=HERE)
    with TestClient(served, base_url="http://127.0.0.1:8080") as client:
        assert client.put("/streams/a").status_code == 201
        for host, status in (
            ("localhost", 200),
            ("[::1]:8080", 200),
            ("evil.example", 403),
            ("[", 403),
            ("", 403),
        ):
            assert client.get("/streams", headers={"host": host}).status_code == status, host
        assert client.delete("/streams/a", headers={"host": "evil.example:8080"}).status_code == 403
        assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 200
        assert list(client.get("/streams").json()) == ["a"]


def test_token(serving):
    client = serving(token="secret")
    refused = client.get("/streams")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/streams", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/streams", headers={"authorization": "Bearer secret"}).status_code == 200
    assert client.get("/streams", headers={"authorization": "bearer secret"}).status_code == 200
    assert client.get("/?token=secret").status_code == 200
    # A proxy's own password does not stand in the token's way.
    assert client.get("/?token=secret", headers={"authorization": "Basic c2VjcmV0"}).status_code == 200
    assert client.get("/?token=secret", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/healthz").status_code == 200


def test_the_live_picture(file, no_hurry):
    """What the page shows: the newest frame with its changed pixels marked."""
    fleet = Local(file=file, limits=Limits())
    worker = fleet._worker
    worker.join("a")
    assert worker.picture("a") == (0, b"")
    for seed in (0, 1):
        worker.frame("a", png(frame(seed)), "image/png")
    number, picture = worker.picture("a", after=1)
    assert number == 2 and Image.open(io.BytesIO(picture)).size == (WIDTH, HEIGHT)
    fleet.close()


def test_the_page_names_only_this_server(serving):
    """From where it was asked for: behind a proxy that may be below a path."""
    page = serving().get("/").text
    assert "streams/${name}/picture" in page and not re.search(r"https?://|[\"'`]/", page)


def test_one_picture(serving, no_hurry):
    """From the first look on; the page asks for one after the other."""
    client = serving()
    assert client.post("/streams/a/frames", content=png(frame(0)), headers=PNG).status_code == 200
    assert client.get("/streams/a/picture").status_code == 404
    assert client.post("/streams/a/frames", content=png(frame(1)), headers=PNG).status_code == 200
    answer = client.get("/streams/a/picture")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (WIDTH, HEIGHT)
    assert client.get("/streams/b/picture").status_code == 404


def test_many_requests_wait_at_a_time(file):
    """Each waits in a thread: those that a hundred viewers take are no reason for a frame to wait."""
    fleet, together = Local(file=file, limits=Limits()), threading.Barrier(100)
    fleet._worker.wait = lambda stream: together.wait(PATIENCE)

    async def scenario():
        return await asyncio.gather(*(fleet.call(str(place), "wait") for place in range(100)))

    assert sorted(asyncio.run(scenario())) == list(range(100))
    fleet.close()
