"""Worker: the cameras of one process. A converted file, a StreamPool, and a thread that runs its steps."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaconvert import feed, video
from deltaconvert.container import load
from deltaconvert.errors import DeltaConvertError, InputError, StreamError, VideoError
from deltaconvert.measure import quantile
from deltaconvert.overlay import overlay
from deltaconvert.serve import images
from deltaconvert.serve.limits import Limits, Refused, without_password
from deltaconvert.serve.results import describe
from deltaconvert.streams import Result, StreamPool
from deltaconvert.watch import resize

PATIENCE = 30.0  # seconds that a request waits for its frame's result
LOOKED_AT = 5.0  # seconds that a stream is drawn after somebody asked for its picture
NEWER = 1.0  # seconds that a picture waits for a newer frame
LATENCIES = 256  # of each stream, that percentiles are taken of
RETRY, LONGEST = 0.5, 30.0  # seconds until a lost camera is tried again: at first, doubled up to the longest


@dataclass
class _Camera:
    """What a worker knows of a stream beside its slot."""

    shown: Tensor | None = None  # uint8 (H, W, 3), the newest frame as the network takes it
    result: dict[str, Any] = field(default_factory=dict)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    picture: bytes = b""
    looked_at: float = -math.inf
    source: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs streams; its methods may be called from any thread. Results are plain values, so that it can be remote."""

    def __init__(
        self,
        file: str | Path,
        *,
        backend: str = "auto",
        device: str = "cpu",
        streams: int = 4,
        limits: Limits | None = None,
        threads: int | None = None,
    ):
        """file: what `deltaconvert convert` wrote. streams: how many there is room for before planning anew."""
        if threads is not None:
            torch.set_num_threads(threads)
        model = load(file, backend=backend, device=device)
        if len(model.example) != 1 or len(model.example[0][0]) != 4:
            raise InputError(
                f"{file}: it takes {len(model.example)} inputs, a camera feeds one image at a time"
            )
        (shape, dtype), self._device = model.example[0], torch.device(device)
        self._size, self._dtype = (shape[2], shape[3]), dtype
        self._recipe = feed.from_json(model.info.get("recipe"))
        self._limits = limits or Limits()
        self._pool = StreamPool(model, streams, limit=self._limits.max_streams)
        self._cameras: dict[str, _Camera] = {}
        self._joining = threading.Lock()
        self._new = threading.Condition()  # a frame was put, a step ended, or the worker closes
        self._closed = False
        self._thread = threading.Thread(target=self._steps, name="steps", daemon=True)
        self._thread.start()

    def join(self, stream: str, snapshot: bytes | None = None) -> None:
        """Take in a stream; does nothing for one that is here."""
        with self._joining:
            if stream not in self._pool:
                with _refusing(503):
                    self._pool.join(stream, snapshot)
                self._cameras[stream] = _Camera()

    def drop(self, stream: str) -> None:
        self._camera(stream).stop.set()
        self._pool.drop(stream)
        del self._cameras[stream]

    def reset(self, stream: str) -> None:
        """Its next frame is full."""
        self._camera(stream)
        self._pool.reset(stream)

    def snapshot(self, stream: str) -> bytes:
        self._camera(stream)
        return self._pool.snapshot(stream)

    def frame(self, stream: str, data: bytes, kind: str) -> dict[str, Any]:
        """Run an image; the result of it, or of a newer one that took its place.

        Refused for one that cannot be decoded, that the network raises on, or that takes too long.
        """
        number = self._put(stream, images.decode(data, kind, self._size, self._limits))
        with self._new:
            done = self._new.wait_for(lambda: self._result(stream).get("frame", 0) >= number, PATIENCE)
        result = self._result(stream)
        if not done:
            raise Refused(503, f"stream {stream} has waited {PATIENCE:.0f} s for its result")
        if "error" in result:
            raise Refused(422, result["error"])
        return result

    def watch(self, stream: str, source: str, loop: bool = False, patient: bool = False) -> None:
        """Read a video into a stream until it ends, again and again if `loop`; or a camera, which is tried again when
        it is lost. One source at a time. patient: a camera that does not answer now is tried again as well."""
        camera = self._camera(stream)
        camera.stop.set()
        camera.stop = threading.Event()
        reader = None
        try:
            with _refusing(422):
                reader = video.read(source)
        except Refused:
            if not (patient and video.is_address(source)):
                raise
        camera.source = without_password(source)
        arguments = (stream, camera, camera.stop, source, reader, loop)
        threading.Thread(target=self._read, args=arguments, name=f"read {stream}", daemon=True).start()

    def result(self, stream: str) -> dict[str, Any]:
        """Of the last frame; empty before the first."""
        self._camera(stream)
        return self._result(stream)

    def picture(self, stream: str, after: int = 0) -> tuple[int, bytes]:
        """(number of the frame, JPEG): the newest frame with its changed pixels marked, newer than `after` if one comes
        within a second (NEWER)."""
        camera = self._camera(stream)
        camera.looked_at = time.monotonic()
        with self._new:
            self._new.wait_for(lambda: camera.picture and camera.result.get("frame", 0) > after, NEWER)
        return camera.result.get("frame", 0), camera.picture

    def stats(self) -> dict[str, dict[str, Any]]:
        """Of each stream: frames, dropped, failed, density, state_bytes, latency and its percentiles in seconds."""
        found = {}
        for stream, stats in self._pool.stats().items():
            camera = self._cameras.get(str(stream))
            if camera is None:
                continue
            times = sorted(camera.latencies) or [0.0]
            found[str(stream)] = {
                **asdict(stats),
                "latency_p50": quantile(times, 0.5),
                "latency_p99": quantile(times, 0.99),
                "source": camera.source,
            }
        return found

    def alive(self) -> bool:
        return self._thread.is_alive()

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        """Stop reading and running."""
        for camera in list(self._cameras.values()):
            camera.stop.set()
        with self._new:
            self._closed = True
            self._new.notify_all()
        self._thread.join(PATIENCE)

    def _camera(self, stream: str) -> _Camera:
        if stream not in self._cameras:
            raise Refused(404, f"there is no stream {stream}")
        return self._cameras[stream]

    def _result(self, stream: str) -> dict[str, Any]:
        camera = self._cameras.get(stream)
        return {"frame": 2**62, "error": "the stream was dropped"} if camera is None else camera.result

    def _put(self, stream: str, frame: Tensor) -> int:
        camera = self._camera(stream)
        height, width = self._size
        image = resize(frame, (width, height))
        x = self._recipe.prepare(image).to(self._dtype)
        with self._new:
            number = self._pool.put(stream, x)
            camera.shown = image
            self._new.notify_all()
        return number

    def _read(
        self,
        stream: str,
        camera: _Camera,
        stop: threading.Event,
        source: str,
        reader: video.VideoReader | None,
        loop: bool,
    ) -> None:
        """A thread that feeds a stream."""
        live, failed = video.is_address(source), ""
        try:
            while not stop.is_set():
                if reader is None:
                    reader = self._found_again(camera, stop, source) if live else video.read(source)
                if reader is None:
                    return
                try:
                    self._feed(stream, stop, reader, paced=not live)
                except VideoError:
                    if not live:
                        raise
                if not (live or loop):
                    return
                reader = None
        except DeltaConvertError as error:
            failed = without_password(str(error))
        finally:
            if reader is not None:
                reader.close()
            if camera.stop is stop:
                camera.source = f"ended: {failed}" if failed else None

    def _feed(self, stream: str, stop: threading.Event, reader: video.VideoReader, paced: bool) -> None:
        """All frames of a reader, whether or not the network keeps up. paced: as fast as the video plays. A camera's
        come by themselves; those beyond the limit are left out, since who waits falls behind it."""
        due = time.monotonic()
        for frame in reader:
            if stop.is_set():
                return
            if paced:
                self._put(stream, frame)
                due += 1 / min(reader.fps, self._limits.max_fps)
                stop.wait(max(0.0, due - time.monotonic()))
            elif time.monotonic() >= due:
                self._put(stream, frame)
                due = time.monotonic() + 1 / self._limits.max_fps

    def _found_again(self, camera: _Camera, stop: threading.Event, source: str) -> video.VideoReader | None:
        """A lost camera, when it answers again; None if it is not wanted any more."""
        pause = RETRY
        while not stop.wait(pause):
            try:
                reader = video.read(source)
            except VideoError as error:
                camera.source = f"lost, tried again: {without_password(str(error))}"
                pause = min(2 * pause, LONGEST)
            else:
                camera.source = without_password(source)
                return reader
        return None

    def _steps(self) -> None:
        while True:
            with self._new:
                self._new.wait_for(lambda: self._closed or self._pool.waiting)
                if self._closed:
                    return
                shown = {name: camera.shown for name, camera in self._cameras.items()}
            for stream, result in self._pool.step().items():
                name = str(stream)
                if name in self._cameras:
                    self._finish(name, self._cameras[name], result, shown.get(name))
            with self._new:
                self._new.notify_all()

    def _finish(self, name: str, camera: _Camera, result: Result, image: Tensor | None) -> None:
        found: dict[str, Any] = {"stream": name, "frame": result.number, "latency": result.latency}
        if result.error is not None:
            camera.result = {**found, "error": f"the network raised on it: {result.error}"}
            return
        camera.latencies.append(result.latency)
        try:
            outputs = describe(result.output)
            if image is not None and time.monotonic() - camera.looked_at < LOOKED_AT:
                with suppress(StreamError):  # dropped meanwhile
                    camera.picture = self._drawn(name, image, outputs)
        except Exception as error:  # the thread serves others too
            camera.result = {**found, "error": f"its result cannot be shown: {error}"}
        else:
            camera.result = {**found, "outputs": outputs}

    def _drawn(self, stream: str, image: Tensor, outputs: list[dict[str, Any]]) -> bytes:
        mask = torch.zeros(image.shape[:2], dtype=torch.bool)
        changed = self._pool.changed(stream).cpu()[: mask.shape[0], : mask.shape[1]]
        mask[: changed.shape[0], : changed.shape[1]] = changed
        label = f"{stream}: {float(changed.float().mean()):.1%} changed"
        if outputs and "top" in outputs[0]:
            label += f", class {outputs[0]['top'][0]['class']}"
        return images.jpeg(overlay(image, mask, label=label))


class _refusing:
    """Errors of deltaconvert become refusals with this status."""

    def __init__(self, status: int):
        self._status = status

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, DeltaConvertError) and not isinstance(error, Refused):
            raise Refused(self._status, str(error)) from error
