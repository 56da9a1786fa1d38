"""The HTTP server, on Starlette: frames in, JSON out. What it accepts is in limits.py.

GET    /streams/NAME              its frames, drops, latency, density, memory and worker, as GET /streams has them
PUT    /streams/NAME              take in a stream; {"url": "rtsp://... or file://...", "loop": false} if it is to
                                  be read by the server, whose state is answered; {"worker": 1} if it is to move to
                                  that one
POST   /streams/NAME/frames       a JPEG, a PNG or raw RGB bytes; the result of it as JSON. Takes the stream in
GET    /streams/NAME/result       the last result
GET    /streams/NAME/picture      what it sees, its changed pixels marked: a JPEG
GET    /streams/NAME/live         the same as a stream of JPEGs
POST   /streams/NAME/reset        its next frame is a full one
DELETE /streams/NAME
GET    /streams  /metrics  /healthz  /
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deltaconvert.serve.fleet import Fleet
from deltaconvert.serve.limits import Limits, Pace, Refused

OPEN = ("/healthz",)  # paths that need no token
BODIES = 16  # how many bodies of the largest size may be held at a time
ARRIVES = 30.0  # seconds that a body may take
NO_TOKEN = "this server asks for its token: Authorization: Bearer TOKEN, or in a browser ?token=TOKEN"


def app(
    fleet: Fleet, limits: Limits, token: str | None = None, hosts: Container[str] | None = None
) -> Starlette:
    """The ASGI application. token: what every request but /healthz has to bring; None asks for none.

    hosts: the host names that it answers to; None for any. A web page that somebody on this machine looks at could send
    requests to 127.0.0.1, but under its own host name.
    """
    door = _Door(fleet, limits)
    routes = [
        Route("/", door.page),
        Route("/healthz", door.health),
        Route("/metrics", door.metrics),
        Route("/streams", door.streams),
        Route("/streams/{name}", door.stream),
        Route("/streams/{name}", door.put, methods=["PUT"]),
        Route("/streams/{name}", door.delete, methods=["DELETE"]),
        Route("/streams/{name}/frames", door.frame, methods=["POST"]),
        Route("/streams/{name}/result", door.result),
        Route("/streams/{name}/picture", door.picture),
        Route("/streams/{name}/live", door.live),
        Route("/streams/{name}/reset", door.reset, methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        fleet.close()

    middleware = []
    if token:
        middleware.append(Middleware(_Guard, refusal=partial(_without_token, token)))
    if hosts is not None:
        middleware.append(Middleware(_Guard, refusal=partial(_to_others, hosts)))
    return Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={Refused: _refused, HTTPException: _unknown},
    )


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": text}, error.status_code, error.headers)


class _Door:
    def __init__(self, fleet: Fleet, limits: Limits):
        self._fleet, self._limits = fleet, limits
        self._paces: dict[str, Pace] = {}
        self._held = 0  # bytes of bodies
        self._known: set[str] = set()  # streams for which a request was answered
        self._new: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of those that none was

    async def page(self, _: Request) -> Response:
        return HTMLResponse(resources.files(__package__).joinpath("page.html").read_text())

    async def health(self, _: Request) -> Response:
        alive = await self._fleet.alive()
        return JSONResponse({"workers": alive}, 200 if all(alive) else 503)

    async def streams(self, _: Request) -> Response:
        return JSONResponse(await self._fleet.stats())

    async def stream(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        found = await self._fleet.stats()
        if name not in found:  # it does not exist, or its worker is restarting, which a call waits for
            await self._fleet.call(name, "result")
            found = await self._fleet.stats()
        if name not in found:
            raise Refused(503, f"the worker of stream {name} does not answer")
        return JSONResponse(found[name])

    async def metrics(self, _: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Metrics(await self._fleet.stats(), await self._fleet.alive()))
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def put(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        async with self._body(request) as body:
            try:
                wanted = json.loads(body or b"{}")
            except (ValueError, RecursionError):
                wanted = None
        types = {"url": str, "loop": bool, "worker": int}
        if not isinstance(wanted, dict) or any(
            type(wanted.get(key, of())) is not of for key, of in types.items()
        ):
            raise Refused(400, 'the body has to be {"url": "...", "loop": false}, {"worker": 0} or nothing')
        unknown = sorted(set(wanted) - set(types))
        if unknown:  # a mistyped key would make a stream without a source
            raise Refused(400, f"the body has {unknown[0]!r}: it takes url, loop and worker")
        source = self._limits.source(wanted["url"]) if "url" in wanted else None
        answer = {"stream": name}
        async with self._taken_in(name):
            if "worker" in wanted:
                await self._fleet.move(name, wanted["worker"])
            if source is not None:
                answer["source"] = await self._fleet.call(name, "watch", source, wanted.get("loop", False))
        return JSONResponse(answer, 201)

    async def delete(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        self._known.discard(name)
        self._paces.pop(name, None)
        await self._fleet.drop(name)
        return Response(status_code=204)

    async def frame(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        pace = self._paces.get(name) or Pace(self._limits.max_fps)
        wait = pace.wait(time.monotonic())
        if wait:
            text = f"stream {name} sends more than {self._limits.max_fps:g} frames a second"
            raise Refused(429, text, {"Retry-After": str(math.ceil(wait))})
        async with self._body(request) as body, self._taken_in(name):
            self._paces[name] = pace
            return JSONResponse(await self._fleet.call(name, "frame", body, kind))

    async def result(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        return JSONResponse(await self._fleet.call(name, "result"))

    async def reset(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        await self._fleet.call(name, "reset")
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        _, picture = await self._fleet.call(name, "picture")
        if not picture:
            raise Refused(404, f"nothing of stream {name} is drawn yet: frames are from the first look on")
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def live(self, request: Request) -> Response:
        name = self._limits.stream_name(request.path_params["name"])
        await self._fleet.call(name, "result")  # refuses what is not there

        async def parts() -> AsyncIterator[bytes]:
            number = 0
            while not await request.is_disconnected():
                newest, picture = await self._fleet.call(name, "picture", number)
                if picture and newest != number:
                    number = newest
                    yield b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + picture + b"\r\n"

        # Else nginx would buffer pictures before it passes them on.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        kind = "multipart/x-mixed-replace; boundary=frame"
        return StreamingResponse(parts(), media_type=kind, headers=headers)

    @asynccontextmanager
    async def _taken_in(self, name: str) -> AsyncIterator[None]:
        """Inside, a new stream is dropped again if its request is refused, because of a broken image or a file that is
        no video. Other requests for the same new stream wait."""
        if name in self._known:
            try:
                yield
            except Refused as error:
                if error.status == 404:  # it was dropped meanwhile: the next request makes it anew
                    self._known.discard(name)
                raise
            return
        async with self._new.setdefault(name, asyncio.Lock()):
            await self._fleet.join(name)
            try:
                yield
            except Refused as error:
                if name not in self._known and error.status < 500:
                    self._paces.pop(name, None)
                    with suppress(Refused):
                        await self._fleet.drop(name)
                raise
            self._known.add(name)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request. Refused, without reading on, if it or all bodies together exceed a limit, or if it is
        late."""
        data, most = bytearray(), self._limits.max_bytes
        try:
            with anyio.move_on_after(ARRIVES) as time_of_it:
                async for chunk in request.stream():
                    data += chunk
                    self._held += len(chunk)
                    if len(data) > most:
                        raise Refused(413, f"the body has more than {most} bytes")
                    if self._held > BODIES * most:
                        raise Refused(503, "the server holds too many requests now", {"Retry-After": "1"})
            if time_of_it.cancelled_caught:
                raise Refused(408, f"the body took more than {ARRIVES:.0f} s")
            yield bytes(data)
        finally:
            self._held -= len(data)


class _Metrics(Collector):
    """The metrics for Prometheus, with one sample a stream."""

    def __init__(self, stats: dict[str, dict[str, Any]], alive: list[bool]):
        self._stats, self._alive = stats, alive

    def collect(self) -> list[Any]:
        gauges = {
            "density": "Share of the input's pixels that changed in the last frame",
            "latency": "Seconds from a frame's arrival to its result, of the last frame",
            "latency_p50": "Median of the latency, in seconds",
            "latency_p99": "99th percentile of the latency, in seconds",
            "state_bytes": "Bytes kept between frames",
        }
        counters = {
            "frames": "Frames computed",
            "dropped": "Frames replaced by a newer one before they were computed",
            "failed": "Frames that the network raised on",
            "nonfinite": "Pixels that came in with NaN or infinity",
        }
        families: list[Any] = []
        for kind, found in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for key, text in found.items():
                family = kind(f"deltaconvert_stream_{key}", text, labels=["stream", "worker"])
                for stream, stats in self._stats.items():
                    family.add_metric([stream, str(stats["worker"])], stats[key])
                families.append(family)
        up = GaugeMetricFamily("deltaconvert_worker_up", "Whether a worker answers", labels=["worker"])
        for place, lives in enumerate(self._alive):
            up.add_metric([str(place)], float(lives))
        return [*families, up]


class _Guard:
    """Middleware that answers a request itself if `refusal` returns an answer; /healthz is open to all."""

    def __init__(self, app: ASGIApp, refusal: Callable[[Request], Response | None]):
        self._app, self._refusal = app, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = None
        if scope["type"] == "http" and scope["path"] not in OPEN:
            refused = self._refusal(Request(scope))
        await (refused or self._app)(scope, receive, send)


def _without_token(token: str, request: Request) -> Response | None:
    """Asks for a token: in the header `Authorization: Bearer TOKEN`, or, for a browser, as ?token=TOKEN."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # a proxy may ask for a password of its own
        given = request.query_params.get("token", "")
    if hmac.compare_digest(given.encode(), token.encode()):
        return None
    return JSONResponse({"error": NO_TOKEN}, 401, {"WWW-Authenticate": "Bearer"})


def _to_others(hosts: Container[str], request: Request) -> Response | None:
    """Refuses requests that were sent to another host name than this server's."""
    named = request.headers.get("host", "")
    with suppress(ValueError):
        if urlsplit(f"//{named}").hostname in hosts:
            return None
    text = f"this server has no token, so it does not answer to {named!r}: give it a --token"
    return JSONResponse({"error": text}, 403)
